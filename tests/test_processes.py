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
        assert abs(ours[name] - theirs[name]).max() < 1e-6, name
    left, right = (json.loads((one / "report.json").read_text()) for one in (folder, other))
    assert left["loss"] == pytest.approx(right["loss"], rel=1e-6) and left["step"] == right["step"]
    last = max(program.steps(other))
    assert program.arrays(folder, last).keys() == program.arrays(other, last).keys()
    assert program.leftovers(folder) == []


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_what_one_does_with_their_devices(count, alone, tmp_path):
    run(tmp_path / "run", count, devices=4 // count, mesh__data=2, mesh__fsdp=2)
    assert_alike(tmp_path / "run", alone)


@pytest.mark.parametrize("axis", ["context", "tensor"])
def test_processes_that_would_share_a_row_are_refused(axis, tmp_path):
    done = wait(start(tmp_path / "run", 2, data__train="no/such/file.tsv", **{f"mesh__{axis}": 2}))
    says = f"mesh {axis}=2: some of the 2 processes would hold the same rows"
    assert any(one.code == 2 and says in one.err for one in done), "the other one may miss it first"


def test_another_number_of_processes_and_another_mesh_go_on(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    for name in ("report.json", "hf"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = max(program.steps(folder))
    shutil.rmtree(folder / "checkpoints" / str(last))
    done = run(folder, 2, mesh__data=1, mesh__fsdp=2)
    assert "resuming from the checkpoint of step" in done.out
    assert_alike(folder, alone)


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
