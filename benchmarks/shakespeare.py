"""The character model of nanoGPT's small CPU setting on tinyshakespeare: validation loss against the 1.88 it reports.

    python benchmarks/shakespeare.py --text=input.txt [--seeds 0 1 2]

4 layers x 128, rows of 64 characters, 12 of them a step, 2,000 steps; the first 90 % of the text to learn from, the
rest to validate, all of it. Prints one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTED = 1.88  # nanoGPT's README


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    text = Path(options.text).read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    losses, seconds = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, part in (("train", text[:cut]), ("validation", text[cut:])):
            (folder / f"{name}.jsonl").write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")
        for seed in options.seeds:
            started = time.perf_counter()
            command = [sys.executable, "-m", "jaxft.main", "--config=configs/gpt_clm.py:chars", f"--config.seed={seed}"]
            command += [f"--config.data.{name}={folder / name}.jsonl" for name in ("train", "validation")]
            workdir = folder / f"run{seed}"
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
            seconds.append(round(time.perf_counter() - started))
            losses.append(round(json.loads((workdir / "report.json").read_text())["loss"], 4))
    print(json.dumps({"seeds": options.seeds, "loss": losses, "reported": REPORTED, "seconds": seconds}))


if __name__ == "__main__":
    main()
