"""What methods of jaxft.peft reach from the same pretrained weights, beside fine-tuning all of them.

    python -m benchmarks.peft_scores --work=runs/scores/docstrings [--methods=full,lora] [--times=3] -- \
        --config=configs/bert_cls.py --config.model.hf=runs/bert_mlm/hf

What stands after -- goes to `python -m jaxft.main`, which runs once a method, each a process of its own. "full" has the
config's own learning rate, the others the one that stands here, which nobody has tuned for a task, --times as much
(narrow models take more). A method that has a report in --work is not run again. Prints a table: the score of the test
split (of validation, where there is none) at the step that is exported, what trains, the quickest of the times of a
step between two lines of the log (other work on the machine makes them longer), the memory of the compiled step and the
size of a checkpoint. benchmarks/peft.py compares times of a step side by side.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# Method -> its section, learning rate.
LORA = dict(name="lora", target="all-linear", rank=8, alpha=16.0)
METHODS: dict[str, tuple[dict[str, Any], float | None]] = {
    "full": (dict(name="full"), None),
    "lora": (LORA, 1e-3),
    "dora": (LORA | dict(dora=True), 1e-3),
    "adalora": (dict(name="adalora", target="all-linear", init_rank=12, target_rank=8, alpha=32.0), 2e-3),
    "houlsby": (dict(name="houlsby"), 1e-3),
    "pfeiffer": (dict(name="pfeiffer"), 1e-3),
    "prefix": (dict(name="prefix"), 1e-2),
    "prompt": (dict(name="prompt"), 3e-2),
    "ia3": (dict(name="ia3"), 1e-2),
    "bitfit": (dict(name="bitfit"), 2e-3),
}
SHARE = re.compile(r"frozen [\d,]+, ([\d.]+%) train")
MEMORY = re.compile(r"([\d.]+) GiB of state and batch, ([\d.]+) GiB of temporaries")


def options(name: str, times: float) -> list[str]:
    section, rate = METHODS[name]
    found = [f"--config.peft={section!r}", "--config.log.tensorboard=False", "--config.checkpoint.keep=1"]
    return found + ([f"--config.optim.lr={rate * times}", "--config.optim.weight_decay=0.0"] if rate else [])


def train(flags: list[str], log: Path) -> None:
    command = [sys.executable, "-m", "jaxft.main", *flags]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        sys.exit(f"jaxft.main ended with {code}: {log}")


def measured(name: str, times: float, work: Path, given: list[str]) -> dict[str, Any]:
    """Runs one method where it was not, and reads what its folder holds."""
    run = work / name
    report, log = run / "report.json", work / f"{name}.log"
    if not report.is_file():
        train([*given, *options(name, times), f"--workdir={run}"], log)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [line["step_seconds"] for line in map(json.loads, lines) if "step_seconds" in line]
    state = max((run / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name)) / "state"
    said = log.read_text(encoding="utf-8")
    share, memory = SHARE.search(said), MEMORY.search(said)
    assert memory, log
    told = json.loads(report.read_text(encoding="utf-8"))
    return {
        "accuracy": told["accuracy"],
        "step": told["step"],
        "trains": share[1] if share else "100%",
        "seconds": min(seconds),
        "memory": float(memory[1]) + float(memory[2]),
        "checkpoint": sum(file.stat().st_size for file in state.rglob("*") if file.is_file()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--times", type=float, default=1.0)
    parser.add_argument("given", nargs="+", help="after --: what jaxft.main is given")
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    found = {name: measured(name, args.times, work, args.given) for name in args.methods.split(",")}
    print("| | accuracy | trains | ms a step | memory, GiB | checkpoint, MiB |\n|---|---|---|---|---|---|")
    for name, told in found.items():
        sizes = f"{told['memory']:.2f} | {told['checkpoint'] / 2**20:.2f}"
        print(f"| {name} | {told['accuracy']:.4f} | {told['trains']} | {1000 * told['seconds']:.0f} | {sizes} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
