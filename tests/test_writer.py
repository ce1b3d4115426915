import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxft import train
from jaxft import writer as writer_module
from jaxft.config import parse
from jaxft.progress import describe
from jaxft.registry import UserError
from jaxft.writer import Writer
from tests import program


def open_writer(folder: Path, *, start: int = 0, total: int = 10, tensorboard: bool = False, **options) -> Writer:
    return Writer(folder, total=total, tensorboard=tensorboard, wandb=options.pop("wandb", ""), start=start, **options)


def records(folder: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_records_are_on_disk_before_the_writer_is_closed(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.batch(1, "abc")
        writer.log(1, {"loss": 2.5, "lr": 1e-3})
        (record,) = records(tmp_path)
        assert (tmp_path / "batches.log").read_text() == "1 abc\n"
    assert {"step": 1, "loss": 2.5, "lr": 1e-3}.items() <= record.items()


def test_numbers_that_are_not_finite_are_strict_json_and_stay_visible(tmp_path, capsys):
    with open_writer(tmp_path) as writer:
        writer.log(1, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    (record,) = records(tmp_path)
    assert (record["loss"], record["up"], record["down"]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan(float(record["loss"])) and float(record["down"]) == -math.inf
    assert "loss nan" in capsys.readouterr().out


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    with open_writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.batch(step, f"first{step}")
            writer.log(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')  # the power went out here
    with (tmp_path / "batches.log").open("ab") as file:
        file.write(b"\0\0\xff\0")
    with open_writer(tmp_path, start=3) as writer:
        writer.batch(4, "second4")
        writer.log(4, {"loss": 40})
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    lines = (tmp_path / "batches.log").read_text().splitlines()
    assert lines == ["1 first1", "2 first2", "3 first3", "4 second4"]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_logs_survive_a_kill(tmp_path):
    code = """
import os, pathlib, signal, sys
from jaxft.writer import Writer
writer = Writer(pathlib.Path(sys.argv[1]), total=9, tensorboard=False, wandb="", start=0)
writer.batch(1, "abc"); writer.log(1, {"loss": 1.0}); writer.batch(2, "def")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False)
    assert (tmp_path / "batches.log").read_text() == "1 abc\n2 def\n"
    assert records(tmp_path)[0]["loss"] == 1.0


def test_without_a_terminal_there_is_one_plain_line_a_record(tmp_path, capsys):
    values = {"loss": 0.5, "lr": 2e-5, "examples_per_second": 1234.5, "tokens_per_second": 30000, "seconds_left": 3725}
    with open_writer(tmp_path, total=2000) as writer:
        for step in range(1, 50):
            writer.batch(step, "x")
        writer.log(50, {**values, "mfu": 0.412})
        writer.log(50, {"validation/loss": 1.0})  # the caller announces evaluations
    expected = (
        "step 50 of 2,000: loss 0.5000, lr 2.00e-05, 1,234 examples/s, 30,000 tokens/s, MFU 41.2%, 1:02:05 left\n"
    )
    assert capsys.readouterr().out == expected


def test_what_is_not_known_is_not_shown():
    assert describe({"loss": 1.0, "bad_streak": 0.0}) == "loss 1.0000"


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with open_writer(tmp_path, total=8) as writer:
        writer.batch(7, "x")
        writer.log(7, {"loss": 0.25, "lr": 1e-4})
        print("said meanwhile")
    shown = terminal.getvalue()
    assert "7/8" in shown and "loss 0.2500" in shown and "said meanwhile" in shown
    assert "step 7 of 8" not in shown


def test_an_inactive_writer_touches_nothing(tmp_path):
    with open_writer(tmp_path, tensorboard=True, wandb="project", active=False) as writer:
        writer.batch(1, "x")
        writer.log(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("killed", [(0, (1.0, 2.0, 3.0)), (0, (9.0, 9.0, 9.0))], ids=["later", "before a checkpoint"])
def test_tensorboard_reads_the_same_numbers_and_purges_on_resume(tmp_path, killed):
    again = [(1, (20.0,))] if killed[1][0] == 1.0 else [(0, (1.0, 20.0))]
    for start, values in (killed, *again):
        time.sleep(1.01)  # the files of one second have one name
        with open_writer(tmp_path, start=start, tensorboard=True) as writer:
            for step, value in enumerate(values, start + 1):
                writer.log(step, {"loss": value, "validation/accuracy": value / 100})
    seen = read_tensorboard(tmp_path / "tensorboard")
    assert seen == {"train/loss": [(1, 1.0), (2, 20.0)], "validation/accuracy": [(1, 0.01), (2, 0.2)]}


def read_tensorboard(folder: Path) -> dict:
    # In its own process: TensorBoard warns of its own deprecations, and warnings are errors here.
    code = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return {tag: [tuple(pair) for pair in pairs] for tag, pairs in json.loads(result.stdout).items()}


def test_a_failure_to_open_closes_what_was_opened(tmp_path, monkeypatch):
    def fail(*_arguments: object) -> None:
        raise UserError("no bar today")

    monkeypatch.setattr(writer_module, "progress", fail)
    with pytest.raises(UserError, match="no bar today"):  # an unclosed file would warn, and warnings are errors
        open_writer(tmp_path)


def test_wandb_that_is_not_installed_is_missed_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(train, "Run", pytest.fail)
    raw = program.config(log__wandb="demo")
    with pytest.raises(UserError, match=r"log\.wandb='demo'.*pip install 'jaxft\[wandb\]'"):
        train.train(raw, parse(raw), tmp_path / "run", (), pytest.fail)
    writer_module.check_wandb("")


WANDB = """
import pathlib, sys
from jaxft.writer import Writer
start = int(sys.argv[2])
with Writer(pathlib.Path(sys.argv[1]), total=9, tensorboard=False, wandb="demo", start=start) as writer:
    writer.log(start + 1, {"loss": 0.5, "validation/accuracy": 0.75})
"""


def test_wandb_records_offline_and_a_resumed_run_keeps_its_id(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra [wandb]")
    environ = {**os.environ, "WANDB_MODE": "offline"}
    ids, outputs = [], []
    for start in "02":
        command = [sys.executable, "-c", WANDB, str(tmp_path), start]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=True)
        ids.append((tmp_path / "wandb_run_id").read_text())
        outputs.append(done.stdout + done.stderr)
    assert ids[0] == ids[1]
    assert all("wandb:" not in text for text in outputs), outputs
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(ids[0].strip() in file.name and b"validation/accuracy" in file.read_bytes() for file in files)
