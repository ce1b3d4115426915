"""Real processes that train together, over the network of this machine."""

import json
import shutil
import signal
import socket
import time

import pytest
from safetensors.numpy import load_file

from jaxft import processes
from jaxft.registry import UserError
from tests import program

pytestmark = pytest.mark.slow

# Processes, devices of each, mesh: where a tensor axis goes across processes.
SHARED = [(2, 1, {"tensor": 2}), (4, 1, {"data": 2, "tensor": 2}), (2, 2, {"fsdp": 1, "data": 1, "tensor": 4})]
LONG = {"train__duration": "4000 steps", "checkpoint__every": "4000 steps", "evaluate__every": "4000 steps"}


def start(workdir, count, devices=1, change=lambda rank, arguments: arguments, **changed):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        among = (f"--coordinator=localhost:{port}", f"--processes={count}", f"--rank={rank}")
        arguments = change(rank, program.command(workdir, *among, **changed))
        children.append(program.start(arguments, devices=devices))
    return children


def wait(children):
    return [program.wait(child) for child in children]


def run(workdir, count, devices=1, **changed):
    done = wait(start(workdir, count, devices, **changed))
    assert [one.code for one in done] == [0] * count, [one.err for one in done]
    assert not any("step" in one.out for one in done[1:]), "one speaks for all"
    return done[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = program.run(folder, devices=4, mesh__data=2, mesh__fsdp=2)
    assert done.code == 0, done.err
    return folder


def assert_alike(folder, other):
    assert (folder / "hf/tokenizer.json").read_bytes() == (other / "hf/tokenizer.json").read_bytes()
    ours, theirs = (load_file(one / "hf" / "model.safetensors") for one in (folder, other))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if name.endswith("attention.self.key.bias"):
            continue  # its gradient is 0 but for rounding, which Adam makes as large as any other
        assert abs(ours[name] - theirs[name]).max() < 1e-6, name
    left, right = (json.loads((one / "report.json").read_text()) for one in (folder, other))
    assert left["loss"] == pytest.approx(right["loss"], rel=1e-6) and left["step"] == right["step"]
    assert (folder / "batches.log").read_bytes() == (other / "batches.log").read_bytes(), "the same global batches"
    last = max(program.steps(other))
    assert program.arrays(folder, last).keys() == program.arrays(other, last).keys()
    assert program.leftovers(folder) == []


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The same of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("by_two") / "run"
    run(folder, 2, devices=2, mesh__data=2, mesh__fsdp=2)
    return folder


def test_two_processes_train_what_one_does_with_their_devices(by_two, alone):
    assert_alike(by_two, alone)


def test_four_processes_train_what_one_does_with_their_devices(alone, tmp_path):
    run(tmp_path / "run", 4, mesh__data=2, mesh__fsdp=2)
    assert_alike(tmp_path / "run", alone)


@pytest.mark.parametrize(("count", "devices", "mesh"), SHARED, ids=str)
def test_processes_that_share_rows_train_what_one_does(count, devices, mesh, alone, tmp_path):
    """An axis that does not cut the batch goes across processes: they have the same rows."""
    run(tmp_path / "run", count, devices, **{f"mesh__{axis}": size for axis, size in mesh.items()})
    assert_alike(tmp_path / "run", alone)


def without_end(folder, source):
    """A copy of a finished run as it was after its last checkpoint but one."""
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "hf")
    (folder / "report.json").unlink()
    step = program.steps(folder)[-2]
    shutil.rmtree(folder / "checkpoints" / str(program.steps(folder)[-1]))
    lines = (folder / "batches.log").read_text().splitlines(keepends=True)
    (folder / "batches.log").write_text("".join(lines[:step]))
    return step


def test_two_processes_go_on_from_one_on_another_mesh_with_the_same_batches(alone, tmp_path):
    step = without_end(tmp_path / "run", alone)
    done = run(tmp_path / "run", 2, mesh__data=1, mesh__fsdp=2)
    assert f"resuming from the checkpoint of step {step}" in done.out
    assert_alike(tmp_path / "run", alone)


def test_one_process_goes_on_from_two_on_another_mesh_with_the_same_batches(by_two, alone, tmp_path):
    step = without_end(tmp_path / "run", by_two)
    done = program.run(tmp_path / "run", devices=2, mesh__tensor=2)
    assert done.code == 0 and f"resuming from the checkpoint of step {step}" in done.out, done.err
    assert_alike(tmp_path / "run", alone)


def seen(child, text):
    """Reads what it says up to `text`."""
    said = ""
    for line in child.stdout:
        said += line
        if text in line:
            return
    pytest.fail(f"{text!r} was never said: {said}{child.stderr.read()}")


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    children = start(tmp_path / "run", 2, **LONG)
    seen(children[0], "step 20 of")
    children[1].send_signal(signal.SIGTERM)
    done = wait(children)
    (step,) = program.steps(tmp_path / "run")
    for one in done:
        assert one.code == 143 and f"SIGTERM: stopped after step {step}, saved in" in one.err, one.err


def test_who_is_killed_is_named_by_the_others(tmp_path):
    children = start(tmp_path / "run", 2, **LONG)
    seen(children[0], "step 20 of")
    children[1].kill()
    since = time.monotonic()
    done = wait(children)
    assert done[0].code == 1 and "process 1 on" in done[0].err and "has not been heard of" in done[0].err
    assert time.monotonic() - since < 150, "half a minute or so, and not for ever"


def test_a_mistake_in_one_process_ends_all_with_its_message(tmp_path):
    def without_data(rank, arguments):
        wrong = [f"--config.data.validation={tmp_path / 'none.tsv'}"]
        return arguments + wrong if rank == 1 else arguments

    done = wait(start(tmp_path / "run", 2, change=without_data))
    assert [one.code for one in done] == [2, 2]
    assert "none.tsv' does not exist" in done[1].err and "process 1: data.validation=" in done[0].err


def test_flags_that_do_not_go_together_are_refused():
    for among in (("localhost:1", 0, -1), ("", 2, -1), ("localhost:1", 2, 2), ("auto", 2, 0)):
        with pytest.raises(UserError, match=r"go together|must be below"):
            processes.join(*among)
