"""Whole runs that are watched: traces on request, a step that hangs, a loss that jumps and is gone around."""

import gzip
import json
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from jaxft import runfolder
from jaxft.config import parse
from jaxft.data.pipeline import WHOLE
from jaxft.observe import hang
from jaxft.processes import Watch
from jaxft.registry import UserError
from jaxft.run import Run
from jaxft.signals import Stopped, StopSignals
from jaxft.train import steps
from tests import program

pytestmark = pytest.mark.slow

GOES_BACK = {"spikes__sigma": 8.0, "spikes__window": 8, "spikes__action": "rollback", "spikes__max_rollbacks": 2}
LONG = {
    "train__duration": "24 steps",
    "evaluate__every": "100 steps",
    "checkpoint__every": "5 steps",
    "checkpoint__keep": 9,
}
POISONED = 16  # the number of a batch, from 0


class Poisoned(Run):
    """Its loss is ten times as high on one batch, or on all from one on; the updates are what they are."""

    numbers = (POISONED,)

    def __init__(self, folder, said, **changed):
        folder = runfolder.RunFolder(folder)
        folder.create()
        super().__init__(parse(program.config(**LONG | GOES_BACK | changed)), folder, (), said.append, StopSignals())
        poison = [_ids(self, number) for number in self.numbers]
        honest = self.train_step

        def train_step(state, batch, given):
            state, sums = honest(state, batch, given)
            if np.asarray(batch["ids"]).tobytes() in poison:
                sums = sums | {"loss": (sums["loss"][0] * 10, sums["loss"][1])}
            return state, sums

        self.train_step = train_step


def _ids(run, number):
    return next(run.inputs.train_batches(run.config, number, WHOLE))["ids"].tobytes()


def finished(run, stop=None):
    """Trains to the end, or up to step `stop`, as train.train does."""
    watch = Watch(lambda: signal.SIGTERM if run.step == stop else None)
    with run.checkpoints:
        steps(run, watch)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(run.state)]


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def batches(folder):
    return (folder / "batches.log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of a run that went back once, the bits of its end, what it said)."""
    folder, said = tmp_path_factory.mktemp("whole") / "run", []
    return folder, finished(Poisoned(folder, said)), said


def test_after_a_spike_a_run_goes_on_from_before_it_without_the_batches_that_led_to_it(whole):
    folder, _, said = whole
    assert f"step {POISONED + 1}: the loss jumped from" in "\n".join(said)
    assert "going on from the checkpoint of step 15 without the 2 batches that followed it" in said
    (made,) = json.loads((folder / "rollbacks.json").read_text())
    assert (made["after"], made["batches"], made["step"]) == (15, 2, 17)
    lines = [line.split() for line in batches(folder).splitlines()]
    assert [int(step) for step, _ in lines] == list(range(1, 25))
    (event,) = [record for record in records(folder) if "spike_loss" in record]
    assert (event["step"], event["spike_step"]) == (15, 17) and event["spike_loss"] > 8 and event["spike_examples"]
    losses = [record["loss"] for record in records(folder) if "loss" in record]
    assert len(losses) == 12 and max(losses) < 2, "no log of what was undone"
    spent = json.loads((folder / "goodput.json").read_text())
    assert spent["lost"] > 0 and spent["productive"] > 0


def test_the_bits_are_those_of_a_run_that_never_saw_these_batches(whole, tmp_path):
    folder, bits, _ = whole
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "rollbacks.json", tmp_path / "run")
    said = []
    assert finished(Poisoned(tmp_path / "run", said)) == bits and "jumped" not in "\n".join(said)
    assert batches(tmp_path / "run") == batches(folder)


@pytest.mark.parametrize("stop", [14, 18], ids=["before the spike", "after it"])
def test_a_run_that_is_stopped_around_a_rollback_ends_in_the_same_bits(whole, tmp_path, stop):
    folder, bits, _ = whole
    with pytest.raises(Stopped):
        finished(Poisoned(tmp_path / "run", []), stop=stop)
    assert finished(Poisoned(tmp_path / "run", [])) == bits
    assert batches(tmp_path / "run") == batches(folder)


@pytest.mark.parametrize("gone", [20, 15])
def test_a_run_killed_after_a_rollback_ends_in_the_same_bits_from_whichever_checkpoint(whole, tmp_path, gone):
    folder, bits, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    for step in program.steps(folder):
        if step >= gone:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert program.steps(tmp_path / "run")[-1] == gone - 5
    assert finished(Poisoned(tmp_path / "run", [])) == bits
    assert batches(tmp_path / "run") == batches(folder)


# jaxft.main with one loss that jumps, as long as the run has not gone back.
JUMPS = f"""
import runpy
from jaxft.run import Run
compile = Run._compile
def jumping(self):
    honest, evaluation = compile(self)
    def train_step(state, batch, given):
        state, sums = honest(state, batch, given)
        if self.step == {POISONED} and not len(self.detours):
            sums = sums | {{"loss": (sums["loss"][0] * 10, sums["loss"][1])}}
        return state, sums
    return train_step, evaluation
Run._compile = jumping
runpy.run_module("jaxft.main", run_name="__main__", alter_sys=True)
"""


def test_two_processes_go_back_alike(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in (0, 1):
        among = (f"--coordinator=localhost:{port}", "--processes=2", f"--rank={rank}")
        arguments = program.command(tmp_path / "run", *among, **LONG | GOES_BACK)
        children.append(program.start(arguments, program=("-c", JUMPS)))
    done = [program.wait(child) for child in children]
    assert [one.code for one in done] == [0, 0], [one.err for one in done]
    assert "going on from the checkpoint of step 15 without the 2 batches that followed it" in done[0].out
    (made,) = json.loads((tmp_path / "run" / "rollbacks.json").read_text())
    assert (made["after"], made["batches"], made["step"]) == (15, 2, 17)
    logged = [line.split()[0] for line in batches(tmp_path / "run").splitlines()]
    assert logged == [str(step) for step in range(1, 25)]


def test_a_spike_in_a_step_that_is_to_be_saved_is_seen_before(tmp_path):
    class AtCheckpoint(Poisoned):
        numbers = (POISONED + 3,)  # the batch of step 20

    said = []
    finished(AtCheckpoint(tmp_path / "run", said))
    assert "going on from the checkpoint of step 15 without the 5 batches that followed it" in said


def test_one_rollback_too_many_ends_the_run_and_says_why(tmp_path):
    class Hopeless(Poisoned):
        numbers = tuple(range(POISONED, 100))

    with pytest.raises(UserError, match=r"step 16: the loss jumped .* after 2 rollbacks, which are all that") as error:
        finished(Hopeless(tmp_path / "run", []))
    assert error.value.code == 2 and "Checkpoints that stand: 5, 10, 15" in str(error.value)


@pytest.mark.parametrize("changed", [{"spikes__action": "say"}, {"checkpoint__every": "100 steps"}])
def test_where_it_shall_not_or_cannot_go_back_a_run_says_so_and_goes_on(tmp_path, changed):
    said = []
    finished(Poisoned(tmp_path / "run", said, **changed))
    (line,) = [line for line in said if "jumped" in line]
    assert f"line 17 of {tmp_path / 'run' / 'batches.log'}" in line
    assert line.endswith("There is no checkpoint before it: the run goes on") is ("checkpoint__every" in changed)
    (event,) = [record for record in records(tmp_path / "run") if "spike_loss" in record]
    assert event["step"] == 17 and not (tmp_path / "run" / "rollbacks.json").exists()


def test_a_step_that_does_not_end_is_told_with_all_stacks_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hang, "LEAST", 1.0)
    monkeypatch.setattr(hang, "TIMES", 0.0)
    said = []
    run = Poisoned(tmp_path / "run", said)
    honest = run.train_step

    def told():
        return [line for line in said if "step 12 has not ended" in line]

    def stuck_for_a_while(*arguments):
        end = time.monotonic() + 60
        while run.step == 11 and not told() and time.monotonic() < end:
            time.sleep(0.05)
        return honest(*arguments)

    run.train_step = stuck_for_a_while
    finished(run)
    (line,) = told()
    assert re.search(r"has not ended for \d+ s: what every thread is doing", line) and run.step == 24
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "stuck_for_a_while" in stacks and stacks.count("most recent call first") > 2


def read_up_to(child, text):
    said = ""
    for line in child.stdout:
        said += line
        if text in line:
            return line
    pytest.fail(f"{text!r} was never said: {said}{child.stderr.read()}")


def traced(folder):
    """Numbers of the steps in a trace for Perfetto."""
    (path,) = folder.rglob("perfetto_trace.json.gz")
    assert list(folder.rglob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}


def test_a_run_is_traced_as_the_config_says_and_whenever_a_signal_comes_and_shows_its_stacks(tmp_path):
    """One process: planned steps, SIGUSR1, SIGUSR2; and SIGTERM still ends it."""
    workdir = tmp_path / "run"
    long = {"train__duration": "40000 steps", "evaluate__every": "40000 steps", "checkpoint__every": "40000 steps"}
    child = program.start(program.command(workdir, profile__steps="4,6", **long))
    try:
        assert f"trace of steps 4 to 6: {workdir / 'profile' / '4'}" in read_up_to(child, "trace of")
        child.send_signal(signal.SIGUSR1)
        again = read_up_to(child, "trace of")
        child.send_signal(signal.SIGUSR2)
        child.send_signal(signal.SIGTERM)
        done = program.wait(child)
    finally:
        child.kill()
    assert traced(workdir / "profile" / "4") == {4, 5, 6}
    first, last = (int(word.replace(",", "").rstrip(":")) for word in again.split()[3:6:2])
    assert traced(workdir / "profile" / str(first)) == {first, first + 1, last} and last == first + 2
    assert done.code == 143 and "SIGTERM: stopped after step" in done.err
    assert "most recent call first" in done.err and "in loop" in done.err
    assert "goodput: " in done.out and "profiling" in done.out


def test_steps_to_trace_beyond_the_end_are_refused_before_the_compile(tmp_path):
    done = program.run(tmp_path / "run", profile__steps="10,13")
    assert done.code == 2 and "profile.steps=10,13: the run has 12 steps; name steps within it" in done.err
    assert "compiled in" not in done.out and "parameters:" not in done.out
