"""Loading a checkpoint onto eight devices: host memory beside the parameters, and speed against the bare disk.

    python -m benchmarks.load [--gigabytes=3] [--dtype=float32] [--folder=DIR]

Writes a random Llama in shards of 1 GB, then alternates, each in a process of its own and with the files dropped from
the page cache: reading the files once in a row, and loading them into parameters sharded over data=1, fsdp=4, tensor=2.
Prints one JSON line. Targets: host memory beside the parameters stays below the largest tensor and 300 MB; loading
reaches 60 % of the disk's speed or more. Eight virtual CPU devices hold the parameters in the same memory, so that
what is beside them is the peak of anonymous memory less their bytes.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPEATS = 3
SHARD = 1_000_000_000
LAYER = dict(d_model=2048, d_ff=8192, heads=16, kv_heads=4)  # about 60 million parameters


def network(layers: int, dtype: str):
    import jax

    from configs.bert_cls import get_config
    from jaxft import build, sharding
    from jaxft.config import parse
    from jaxft.models import llama

    config = parse(get_config().to_dict())
    on = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2, "context": 1, "expert": 1}, jax.devices())
    cfg = llama.Config(vocab=32000, positions=2048, layers=layers, pad_id=0, **LAYER)
    model = dataclasses.replace(config.model, param_dtype=dtype)
    return build.network(llama, cfg, head="causal_lm", outputs=1, model=model, rules=config.sharding, mesh=on)


def write(folder: Path, gigabytes: float, dtype: str) -> int:
    """Writes the checkpoint, and returns its number of layers."""
    import numpy as np

    from jaxft.hf import save

    itemsize = 4 if dtype == "float32" else 2
    net = network(1, dtype)
    per_layer = sum(leaf.size for path, leaf in net.abstract.items() if path.startswith("blocks/")) * itemsize
    rest = sum(leaf.size for path, leaf in net.abstract.items() if not path.startswith("blocks/")) * itemsize
    layers = max(1, round((gigabytes * 1e9 - rest) / per_layer))
    net = network(layers, dtype)
    rng = np.random.default_rng(0)

    class Lazy:
        """A parameter that is drawn a layer at a time: the model never lies in memory here."""

        def __init__(self, shape: tuple[int, ...]):
            self.shape = shape

        def __getitem__(self, index: tuple[int, ...]):
            return rng.standard_normal(self.shape[len(index) :], np.float32)

        def __array__(self, *_args, **_kwargs):
            return rng.standard_normal(self.shape, np.float32)

    params = {path: Lazy(shape) for path, shape in net.stored.items()}
    save.save(folder, params, net.table, dtype=dtype, shard_bytes=SHARD, shapes=net.stored)
    return layers


def evict(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> dict[str, float]:
    """Seconds to read every byte once, in order."""
    started, total, buffer = time.perf_counter(), 0, bytearray(1 << 24)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return {"seconds": time.perf_counter() - started, "bytes": total}


def load(folder: Path, layers: int, dtype: str) -> dict[str, float]:
    """Seconds to load, and the peak of anonymous memory above what was there before and the parameters, in bytes."""
    import jax

    from jaxft import build

    net = network(layers, dtype)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.005)

    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    params, said = build.parameters(net, folder, seed=0, reset_head=False)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert not said
    return {"seconds": seconds, "beside": peak - before - held, "parameters": held, "largest": largest}


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def child(*arguments: str) -> dict[str, float]:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.load", *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--folder", default=None, help="where the checkpoint is written; default: a temporary folder")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, folder, *rest = options.part
        parts = {"write": lambda: {"layers": write(Path(folder), options.gigabytes, options.dtype)}}
        parts |= {"read": lambda: read(Path(folder)), "load": lambda: load(Path(folder), int(rest[0]), options.dtype)}
        print(json.dumps(parts[part]()))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary) / "llama"
        given = (f"--dtype={options.dtype}", f"--gigabytes={options.gigabytes}", "--part")
        layers = int(child(*given, "write", str(folder))["layers"])
        reads, loads = [], []
        for _ in range(REPEATS):
            evict(folder)
            reads.append(child(*given, "read", str(folder)))
            evict(folder)
            loads.append(child(*given, "load", str(folder), str(layers)))
    size = reads[0]["bytes"]
    disk, ours = (size / statistics.median(run["seconds"] for run in runs) for runs in (reads, loads))
    beside, largest = max(run["beside"] for run in loads), loads[0]["largest"]
    result = {
        "gigabytes": round(size / 1e9, 2),
        "layers": layers,
        "disk_MB_per_s": round(disk / 1e6),
        "load_MB_per_s": round(ours / 1e6),
        "ratio": round(ours / disk, 2),
        "beside_parameters_MB": round(beside / 1e6),
        "largest_parameter_MB": round(largest / 1e6),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
