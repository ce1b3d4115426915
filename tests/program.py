"""The real program on a few rows: what the tests of faults and of bad input share."""

import atexit
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from configs.bert_cls import get_config
from jaxft.atomic import BUILDING
from jaxft.checkpoint import Checkpoints
from jaxft.signals import StopSignals
from jaxft.throughput import Throughput

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
# One model and one schedule for all runs, so that they share one compiled program.
OPTIONS = {
    "data.holdout": "0.0",
    "input.length": 16,
    "input.pack": 3,
    "tokenizer.vocab": 200,
    "model.hf": "",
    "optim.lr": 1e-3,
    "model.scratch.layers": 1,
    "model.scratch.d_model": 16,
    "model.scratch.d_ff": 32,
    "model.scratch.heads": 2,
    "model.scratch.positions": 16,
    "train.duration": f"{STEPS} steps",
    "train.batch": 8,
    "train.log_every": "2 steps",
    "evaluate.every": "5 steps",
    "evaluate.batch": 8,
    "checkpoint.every": "2 steps",
    "checkpoint.keep": 3,
    "log.tensorboard": False,
}
WORDS = {"red": "crimson rose brick", "blue": "sky sea ink", "green": "grass leaf pine"}

# Runs jaxft.main, and just before the nth change of a file whose path holds a pattern (not a change made by C++) it
# signals itself; a BUSY program then spends minutes in C, as a long compile does. A rename is "FROM -> TO". The pattern
# COMPILE stands for the middle of the compile: the main thread below Run._compile and not moving, so in C. FAIL lets
# the nth change and all after it fail with that errno; FULL lets no file take another byte from then on. COUNT takes
# the number of changes, MEMORY limits the address space (bytes).
COMPILE = "the compile"
HARNESS = """
import atexit, hashlib, os, resource, runpy, sys, threading, time
if os.environ["MEMORY"]:
    resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["MEMORY"]),) * 2)
numbers, pattern, left = [int(n) for n in os.environ["SIGNALS"].split()], os.environ["PATTERN"], int(os.environ["NTH"])
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}
fail = int(os.environ["FAIL"] or 0)
changes = 0
def signal_self():
    for number in numbers:
        os.kill(os.getpid(), number)
def hook(event, args):
    global changes
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    what = f"{args[0]} -> {args[1]}" if event == "os.rename" else str(args[0]) if args else ""
    if (writes or event in CHANGES) and pattern in what:
        changes += 1
        if fail and changes >= left and event != "shutil.rmtree":  # which is no call of the system itself
            raise OSError(fail, os.strerror(fail), str(args[0]))
        if changes == left:
            if os.environ["FULL"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            signal_self()
            if os.environ["BUSY"]:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
def where(frame):
    yield id(frame), frame.f_lasti
    while frame:
        yield frame.f_code.co_filename.endswith("jaxft/run.py") and frame.f_code.co_name == "_compile"
        frame = frame.f_back
def watch(before=None, still=0):
    while still < 10:
        time.sleep(0.01)
        at, *inside = where(sys._current_frames()[threading.main_thread().ident])
        still, before = still + 1 if any(inside) and at == before else 0, at
    signal_self()
if pattern == "the compile":
    threading.Thread(target=watch, daemon=True).start()
else:
    sys.addaudithook(hook)
if os.environ["COUNT"]:
    atexit.register(lambda: open(os.environ["COUNT"], "w").write(str(changes)))
runpy.run_module("jaxft.main", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def write_rows(path: Path, count: int = 60, seed: int = 0) -> Path:
    """`count` rows "text, label" as TSV, by the name of `path` or as JSON lines."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = list(WORDS)[i % len(WORDS)]
        words = rng.choices([*WORDS[label].split(), "the", "a", "of", "seen"], k=rng.randint(2, 7))
        rows.append((f"{' '.join(words)} {i}", label))
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    else:
        lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@functools.cache
def data() -> Path:
    """A folder with train.tsv and validation.tsv, for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="jaxft-program-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_rows(folder / "train.tsv")
    write_rows(folder / "validation.tsv", count=15, seed=1)
    return folder


@functools.cache
def unbroken() -> Path:
    """The run folder of one finished run, for the whole session: to read and to copy, never to change.

    Its parent holds `changes`: how many changes of files the run made.
    """
    workdir = data() / "unbroken"
    done = run(workdir, count=data() / "changes")
    assert done.code == 0, done.err
    return workdir


def command(workdir: Path, *flags: str, config: str = "configs/bert_cls.py:files", **changed: object) -> list[str]:
    """Arguments of jaxft.main; `changed` are options of the config with "__" for ".", `flags` come as they are."""
    options = {"data.train": data() / "train.tsv", "data.validation": data() / "validation.tsv", **OPTIONS}
    options |= {name.replace("__", "."): value for name, value in changed.items()}
    settings = [f"--config.{name}={value}" for name, value in options.items()]
    return [f"--config={config}", *settings, f"--workdir={workdir}", *flags]


def config(**changed: object) -> dict:
    """The same config as plain dicts, for a run inside the process of the test."""
    raw = get_config("files").to_dict()
    options = {"data.train": str(data() / "train.tsv"), "data.validation": str(data() / "validation.tsv"), **OPTIONS}
    options |= {"data.holdout": 0.0} | {name.replace("__", "."): value for name, value in changed.items()}
    for name, value in options.items():
        *sections, key = name.split(".")
        functools.reduce(dict.__getitem__, sections, raw)[key] = value
    return raw


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """As of a user's shell: `devices` CPU devices instead of the eight of the test suite."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), **more}


def start(arguments: list[str], *, devices: int = 1, program: tuple[str, ...] = ("-m", "jaxft.main"), **env: str):
    """Starts the program; `wait` waits for it."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=environment(devices, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(child: subprocess.Popen[str], timeout: float = 240) -> Done:
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise
    return Done(child.returncode, out, err)


def run(
    workdir: Path,
    *flags: str,
    signals: tuple[int, ...] = (),
    at: str = "",
    nth: int = 1,
    busy: bool = False,
    fail: int = 0,
    count: Path | None = None,
    devices: int = 1,
    memory: int = 0,
    full: bool = False,
    env: dict[str, str] | None = None,
    config: str = "configs/bert_cls.py:files",
    **changed: object,
) -> Done:
    """Runs the program to its end; `signals` come to it at the `nth` change of a file whose path holds `at`.

    Or that change fails with the errno `fail`, and all after it do; or from there on the disk is `full`.
    """
    arguments = command(workdir, *flags, config=config, **changed)
    if not (signals or fail or count or memory or full):
        return wait(start(arguments, devices=devices, **(env or {})))
    harness = {
        "SIGNALS": " ".join(str(int(number)) for number in signals),
        "PATTERN": at or str(workdir),
        "NTH": str(nth),
        "BUSY": "1" if busy else "",
        "FAIL": str(fail or ""),
        "COUNT": str(count or ""),
        "MEMORY": str(memory or ""),
        "FULL": "1" if full else "",
    }
    return wait(start(arguments, devices=devices, program=("-c", HARNESS), **harness, **(env or {})))


def steps(workdir: Path) -> list[int]:
    """The committed checkpoints."""
    return _checkpoints(workdir).steps()


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Everything in a checkpoint: parameters, moments, counters."""
    described = json.loads((workdir / "checkpoints" / str(step) / "meta.json").read_text())["state"]
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {}
    for name, text in described.items():
        dtype, _, sizes = text.rstrip("]").partition("[")
        shape = tuple(int(size) for size in sizes.split(",") if size)
        abstract[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    return {name: np.asarray(array) for name, array in _checkpoints(workdir).restore(step, abstract).items()}


@contextlib.contextmanager
def stopping(monkeypatch, at: int):
    """Inside, a run in this process is sent SIGTERM after step `at`."""
    entered, enter, add = [], StopSignals.__enter__, Throughput.add

    def stop(measure, step, sums):
        add(measure, step, sums)
        if step == at:
            signal.raise_signal(signal.SIGTERM)
            while entered[-1].number is None:  # a thread notes it
                time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "__enter__", lambda self: entered.append(self) or enter(self))
        patch.setattr(Throughput, "add", stop)  # called after each step
        yield


def assert_same_end(workdir: Path, other: Path) -> None:
    """Both runs ended alike, bit for bit: parameters, moments, step, batches, scores, export; nothing is left over."""
    last = max(steps(other))
    left, right = arrays(workdir, last), arrays(other, last)
    assert left.keys() == right.keys() and int(left["step"]) == last
    for name in right:
        assert left[name].tobytes() == right[name].tobytes(), name
    weights = "adapter_model" if (other / "hf" / "adapter_config.json").exists() else "model"
    for name in ("batches.log", f"hf/{weights}.safetensors", "hf/tokenizer.json", "report.json"):
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name
    assert leftovers(workdir) == []


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders: what a process that died may have left."""
    ends = (".tmp", ".old", ".new")
    return [str(path) for path in folder.rglob("*") if path.suffix in ends or path.name.startswith(BUILDING)]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _checkpoints(workdir: Path) -> Checkpoints:
    return Checkpoints(workdir / "checkpoints", keep=1, say=print, read_only=True)
