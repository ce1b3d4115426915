"""The real program on tiny models and made-up rows: what the tests of the verbs share."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
READER = "transformers" if importlib.util.find_spec("torch") else "jaxft"  # who reads an export for --verify
LENGTH = 32  # tokens: some rows of `reviews` are longer
TINY = (
    "--config.data.holdout=0.0",
    f"--config.input.length={LENGTH}",
    "--config.input.pack=4",
    "--config.tokenizer.vocab=200",
    "--config.model.hf=",
    "--config.optim.lr=1e-3",
    "--config.model.scratch.layers=2",
    "--config.model.scratch.d_model=32",
    "--config.model.scratch.d_ff=64",
    "--config.model.scratch.heads=2",
    f"--config.model.scratch.positions={LENGTH}",
    "--config.train.batch=8",
    "--config.train.duration=15 steps",
    "--config.train.log_every=5",
    "--config.evaluate.batch=8",
    "--config.evaluate.every=5",
    "--config.checkpoint.every=5",
)
WORDS = {
    "bad": ("awful", "poor", "dull"),
    "fair": ("decent", "plain", "usual"),
    "good": ("bright", "lovely", "superb"),
}


def reviews(n: int, seed: int, labels: Iterable[str] = tuple(WORDS)) -> list[dict[str, Any]]:
    """n rows of 3 to 45 words, a third of which tell the label."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        label = rng.choice(list(labels))
        words = rng.choices((*WORDS[label], "the", "film", "was", "its", "plot", "seen"), k=rng.randint(3, 45))
        rows.append({"id": i, "text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """That of a user's shell with so many virtual devices; conftest's own XLA_FLAGS stay here."""
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **more}


def program(verb: str, *flags: str, devices: int = 1, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m jaxft.<verb>` in a process of its own."""
    command = [sys.executable, "-m", f"jaxft.{verb}", *flags]
    env = environment(devices, **environ)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def train(workdir: Path, *flags: str, variant: str = "files", devices: int = 1, **environ: str) -> str:
    """A finished run of the tiny model in `workdir`; later flags win. Returns what it said."""
    config = f"--config=configs/bert_cls.py:{variant}"
    done = program("main", config, *TINY, *flags, f"--workdir={workdir}", devices=devices, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def here(verb: str, *flags: object) -> None:
    """The verb in this process, on its eight devices: a UserError is raised instead of printed."""
    module = importlib.import_module(f"jaxft.{verb}")
    with mock.patch.object(sys, "argv", [verb, *map(str, flags)]):
        getattr(module, verb)(module._arguments())


def transformers_logits(folder: Path, texts: list[str], pairs: list[str] | None = None) -> Any:
    """float32 logits [n, C] of transformers' own classes for the folder, texts cut to LENGTH tokens.

    Without torch the test ends here, skipped: whatever needs no torch is asserted before.
    """
    torch = pytest.importorskip("torch", reason="live logits need torch; tests/models holds stored ones against ours")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        texts, pairs, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**inputs).logits.numpy()
