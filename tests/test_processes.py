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

# Processes, devices of each, mesh: an axis that does not cut the batch goes across processes.
SHARED = [
    (2, 1, {"tensor": 2}),
    (2, 1, {"context": 2}),
    (4, 1, {"data": 2, "tensor": 2}),
    (2, 2, {"fsdp": 1, "data": 1, "tensor": 4}),
]
ACROSS = {"sharding__activations__B": "('fsdp', 'data')"}  # every other piece of the batch is of one process
LONG = {"train__duration": "4000 steps", "checkpoint__every": "4000 steps", "evaluate__every": "4000 steps"}


# The program, which counts another process as lost after 8 s: no test needs to wait for 40.
HASTY = """
import runpy
from jaxft import processes
processes.LOST = 8.0
runpy.run_module("jaxft.main", run_name="__main__", alter_sys=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(workdir, count, devices=1, change=lambda rank, arguments: arguments, code="", **changed):
    port, children = free_port(), []
    for rank in range(count):
        among = (f"--coordinator=localhost:{port}", f"--processes={count}", f"--rank={rank}")
        arguments = change(rank, program.command(workdir, *among, **changed))
        what = ("-c", code) if code else ("-m", "jaxft.main")
        children.append(program.start(arguments, devices=devices, program=what))
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
    """The same of two processes with two devices each, whose rows are not next to one another."""
    folder = tmp_path_factory.mktemp("by_two") / "run"
    run(folder, 2, devices=2, mesh__data=2, mesh__fsdp=2, **ACROSS)
    return folder


def test_two_processes_train_what_one_does_with_their_devices(by_two, alone):
    assert_alike(by_two, alone)


@pytest.mark.parametrize(("count", "devices", "mesh"), SHARED, ids=str)
def test_processes_that_share_rows_train_what_one_does(count, devices, mesh, alone, tmp_path):
    """An axis that does not cut the batch goes across processes: they have the same rows."""
    run(tmp_path / "run", count, devices, **{f"mesh__{axis}": size for axis, size in mesh.items()})
    assert_alike(tmp_path / "run", alone)


def test_several_processes_write_texts(tmp_path):
    """Each has the weights and the prompts whole or in part; what is written reaches the meter of all."""
    small = {"layers": 1, "decoder_layers": 1, "d_model": 16, "d_ff": 32, "heads": 2}
    changed = {f"model__scratch__{name}": size for name, size in small.items()}
    changed |= {"data__numbers": 100, "input__length": 32, "task__target_length": 32, "task__max_new_tokens": 4}
    changed |= {"train__duration": "2 steps", "tokenizer__vocab": 300, "evaluate__every": "2 steps", "mesh__tensor": 2}
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in changed.items()]
    children = start(tmp_path / "run", 2, change=lambda rank, given: ["--config=configs/mt.py", *flags, *given[-4:]])
    done = wait(children)
    assert [one.code for one in done] == [0, 0], [one.err for one in done]
    assert "chrf" in json.loads((tmp_path / "run/report.json").read_text())


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
    done = program.run(tmp_path / "run", devices=2, mesh__tensor=2, **ACROSS)
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


def lose(workdir, number, who, **changed):
    """What the other says, and after how many seconds, when process `who` of two gets a signal it cannot answer."""
    children = start(workdir, 2, code=HASTY, **{**LONG, **changed})
    seen(children[0], "step 20 of")
    children[who].send_signal(number)
    since = time.monotonic()
    done = program.wait(children[1 - who])
    seconds = time.monotonic() - since
    children[who].kill()
    program.wait(children[who])
    return done, seconds


def assert_named(done, seconds, said):
    assert done.code == 1 and said in done.err and processes.GO_ON in done.err, done.err
    assert seconds < 40 and processes.LOST + 6 * processes.BEAT < 60, "within a minute with the true patience"


def test_who_is_killed_is_named_and_after_it_all_go_on_until_a_signal_to_one_stops_them_after_the_same_step(tmp_path):
    often = {**LONG, "checkpoint__every": "10 steps"}
    assert_named(*lose(tmp_path / "run", signal.SIGKILL, 1, **often), "process 1 on")
    children = start(tmp_path / "run", 2, **often)
    seen(children[0], "resuming from the checkpoint of step")
    seen(children[0], " of 4,000: loss")
    children[1].send_signal(signal.SIGTERM)
    done = wait(children)
    for one in done:
        said = f"SIGTERM: stopped after step {max(program.steps(tmp_path / 'run'))}, saved in"
        assert one.code == 143 and said in one.err, one.err


@pytest.mark.parametrize("who", [0, 1])
def test_who_is_stopped_is_named(who, tmp_path):
    said = "process 1 on" if who else "process 0, through which the others speak, does not answer"
    assert_named(*lose(tmp_path / "run", signal.SIGSTOP, who), said)


def test_the_others_end_with_process_0_and_jax_says_so(tmp_path):
    """jax ends whoever loses its coordination service, at once and with a message of its own."""
    done, seconds = lose(tmp_path / "run", signal.SIGKILL, 0)
    assert done.code in (1, -signal.SIGABRT) and seconds < 40
    assert "process 0" in done.err or "the leader" in done.err, done.err


MEET = """
import sys, time
import jaxft
from jaxft import processes
rank = int(sys.argv[2])
processes.join(f"localhost:{sys.argv[1]}", 3, rank)
processes.part("breakfast", 30)
if rank:
    time.sleep(4)
else:
    try:
        processes.part("dinner", 2)
    except processes.UserError as error:
        print(error)
processes.part("supper", 30)
"""


def test_a_barrier_that_is_missed_is_named_with_those_who_missed_it():
    port = str(free_port())
    children = [program.start([port, str(rank)], program=("-c", MEET)) for rank in range(3)]
    done = wait(children)
    assert [one.code for one in done] == [0, 0, 0], [one.err for one in done]
    assert "process 1, 2 did not come to 'dinner 1' within 2 s" in done[0].out


def test_a_mistake_in_one_process_ends_all_with_its_message(tmp_path):
    def without_data(rank, arguments):
        wrong = [f"--config.data.validation={tmp_path / 'none.tsv'}"]
        return arguments + wrong if rank == 1 else arguments

    done = wait(start(tmp_path / "run", 2, change=without_data))
    assert [one.code for one in done] == [2, 2]
    assert "none.tsv' does not exist" in done[1].err and "process 1: data.validation=" in done[0].err


@pytest.mark.parametrize("error, code", [(RuntimeError("the name of the host is not known"), 1), (ValueError("?"), 2)])
def test_who_starts_a_run_again_may_do_so_when_the_others_did_not_come(monkeypatch, error, code):
    def fail(**_):
        raise error

    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="do not come together") as refused:
        processes.join("auto", 0, -1)
    assert refused.value.code == code


def test_flags_that_do_not_go_together_are_refused():
    for among in (("localhost:1", 0, -1), ("", 2, -1), ("localhost:1", 2, 2), ("auto", 2, 0)):
        with pytest.raises(UserError, match=r"go together|must be below"):
            processes.join(*among)
