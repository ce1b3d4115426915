"""Whole runs that a person watches: on a terminal, with Weights & Biases, on eight devices."""

import fcntl
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

from tests import program
from tests.verbs_run import ROOT, TINY, environment, read_rows, reviews, train, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # float32; never loosened
WANDB = importlib.util.find_spec("wandb") is not None


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("data") / "x.jsonl", reviews(150, 0))
    return (*TINY, f"--config.data.train={rows}", "--config.data.holdout=0.2")


@pytest.fixture(scope="module")
def watched(tmp_path_factory, flags):
    """(run folder, what a terminal of 200 columns got) of a run on one device, with W&B where it is installed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "jaxft.main", "--config=configs/bert_cls.py:files", *flags]
    command += [f"--workdir={folder}", f"--config.log.wandb={'project' if WANDB else ''}"]
    env = environment(1, TERM="xterm", COLUMNS="200", WANDB_MODE="offline")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = read_all(ours)
    os.close(ours)
    assert process.returncode == 0, shown
    return folder, shown


def read_all(terminal):
    chunks = []
    while True:
        try:
            chunks.append(os.read(terminal, 65536))
        except OSError:  # EIO: the other side is closed
            return b"".join(chunks).decode()


def test_on_a_terminal_a_bar_shows_loss_and_speed_and_leaves_lines_whole(watched):
    folder, shown = watched
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = re.split(r"[\r\n]+", plain)
    bars = [line for line in lines if re.search(r"\b15/15\b.*loss \d\.\d+.*lr .*examples/s.*tokens/s", line)]
    assert bars, plain
    records = [record for record in read_rows(folder / "metrics.jsonl") if "validation/loss" in record]
    assert len(records) == 3
    for record in records:
        scores = ((name.partition("/")[2], value) for name, value in record.items() if "/" in name)
        said = f"step {record['step']}: validation " + ", ".join(f"{name} {value:.4f}" for name, value in scores)
        assert any(line.removesuffix(" (best)").rstrip() == said for line in lines), (said, lines)
    assert "step 5 of 15" not in plain, "the bar instead of lines"
    assert any(line.startswith("confusion matrix") for line in lines)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_what_is_said_to_be_written_is_there(tmp_path, tensorboard):
    done = program.run(tmp_path / "run", log__tensorboard=tensorboard)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("written to ")]
    said = re.sub(r" \(.*?\)", "", line.partition(": ")[2]).split(", ")
    assert all((tmp_path / "run" / name).exists() for name in said), said
    assert ("tensorboard/" in said) is tensorboard


@pytest.mark.skipif(not WANDB, reason="needs the extra [wandb]")
def test_weights_and_biases_gets_the_numbers_offline(watched):
    folder, shown = watched
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert all(name in written for name in (b"tokens_per_second", b"validation/accuracy", b"grad_norm"))
    assert "wandb:" not in shown, "it stays off the screen"


def test_eight_devices_have_the_losses_of_one(watched, flags, tmp_path):
    alone, _ = watched
    sizes = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    said = train(tmp_path / "run", *flags, *sizes, devices=8)
    assert "devices: 8 x cpu; mesh data=2, fsdp=2, tensor=2" in said
    names = ("step", "loss", "validation/loss", "validation/accuracy", "grad_norm")
    one, eight = (
        [[record.get(name, 0.0) for name in names] for record in read_rows(folder / "metrics.jsonl")]
        for folder in (alone, tmp_path / "run")
    )
    assert len(one) == 6
    np.testing.assert_allclose(eight, one, rtol=0, atol=TOLERANCE)
    assert (alone / "batches.log").read_text() == (tmp_path / "run" / "batches.log").read_text()
