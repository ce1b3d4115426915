"""A run of a task that a signal stops and the same command goes on with ends as an unbroken one, bit for bit."""

import pytest

from jaxft.config import parse
from jaxft.signals import Stopped
from jaxft.train import train
from tests import every_task, program

pytestmark = pytest.mark.slow

STOP = 2  # the step that the signal comes in
# Each reads its rows in a way of its own; cls is stopped, killed and damaged in test_faults.py.
TASKS = ("chat", "detection", "multiple_choice", "retrieval", "seq2seq", "span_qa")


@pytest.mark.parametrize("name", TASKS)
def test_a_stopped_run_goes_on_to_the_same_bits(name, tmp_path, monkeypatch):
    raw = every_task.config(name, tmp_path)

    def go(folder):
        said = []
        train(raw, parse(raw), tmp_path / folder, (), said.append)
        return said

    go("unbroken")
    said = f"SIGTERM: stopped after step {STOP}, saved in"
    with program.stopping(monkeypatch, STOP), pytest.raises(Stopped, match=said):
        go("stopped")
    assert len((tmp_path / "stopped" / "batches.log").read_text().splitlines()) == STOP
    assert f"resuming from the checkpoint of step {STOP}" in go("stopped")
    program.assert_same_end(tmp_path / "stopped", tmp_path / "unbroken")
