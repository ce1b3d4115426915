"""How the time of a training step goes with the number of processes, and of virtual devices in one process.

    python -m benchmarks.processes [--rounds=3] [--steps=60]

Trains one small BERT with the real program and one global batch, on 1, 2 and 4 processes of one device each, and in
one process on 1, 2, 4 and 8 virtual devices: all on this machine, so that no side has more cores than another and what
grows is what dividing costs. A round runs every side once, in another order each time. Prints a table and one JSON
line: the median over the rounds of each run's median seconds a step, and the load of the machine before each round.
"""

import argparse
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIDES = [("processes", 1), ("processes", 2), ("processes", 4), *(("devices", count) for count in (2, 4, 8))]
ONE = {"processes": "process", "devices": "device"}
EVERY = 5  # steps between two times that are taken
FLAGS = {
    "data.holdout": 0.0,
    "model.hf": "",
    "input.length": 64,
    "input.pack": 4,
    "tokenizer.vocab": 500,
    "model.scratch.layers": 2,
    "model.scratch.d_model": 128,
    "model.scratch.d_ff": 512,
    "model.scratch.heads": 4,
    "model.scratch.positions": 64,
    "train.batch": 32,
    "evaluate.batch": 32,
    "log.tensorboard": False,
}


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(count)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
    lines = (f"{' '.join(rng.choices(words, k=rng.randint(5, 20)))}\t{'xyz'[i % 3]}" for i in range(count))
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def seconds_a_step(folder: Path, kind: str, count: int, steps: int) -> float:
    """Median of one run, without its first steps. Raises SystemExit where it fails."""
    processes, devices = (count, 1) if kind == "processes" else (1, count)
    options = FLAGS | {"data.train": folder / "train.tsv", "data.validation": folder / "validation.tsv"}
    options |= {"train.duration": f"{steps} steps", "train.log_every": f"{EVERY} steps"}
    options |= {"evaluate.every": f"{steps} steps", "checkpoint.every": f"{steps} steps"}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    environ = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        command = [sys.executable, "-m", "jaxft.main", "--config=configs/bert_cls.py:files", *flags]
        command.append(f"--workdir={workdir}/run")
        among = [f"--coordinator=localhost:{free_port()}", f"--processes={processes}"] if processes > 1 else []
        ranks = [[*among, f"--rank={rank}"] if among else [] for rank in range(processes)]
        children = [
            subprocess.Popen(
                [*command, *own], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for own in ranks
        ]
        said = [child.communicate()[1] for child in children]
        if any(child.returncode for child in children):
            raise SystemExit(f"{kind}={count} failed: {said}")
        lines = (Path(workdir) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    times = [record["time"] for record in records[1:]]
    return statistics.median((after - before) / EVERY for before, after in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {side: [] for side in SIDES}
    loads = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "train.tsv", 4000)
        write_rows(folder / "validation.tsv", 64)
        for number in range(args.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            for side in random.Random(number).sample(SIDES, len(SIDES)):
                found[side].append(seconds_a_step(folder, *side, args.steps))
    one = statistics.median(found["processes", 1])
    print("| | ms a step | of one device |\n|---|---|---|")
    for (kind, count), seconds in found.items():
        median = statistics.median(seconds)
        print(f"| {count} {kind if count > 1 else ONE[kind]} | {1000 * median:.1f} | {median / one:.2f} |")
    medians = {f"{count} {kind}": round(statistics.median(seconds), 4) for (kind, count), seconds in found.items()}
    print(json.dumps({"cores": os.cpu_count(), "load": loads, "rounds": args.rounds, "seconds_a_step": medians}))


if __name__ == "__main__":
    main()
