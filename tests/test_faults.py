"""The real program, killed, stopped, damaged and started again: it ends where an unbroken run ends, bit for bit."""

import dataclasses
import errno
import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from jaxft import cache, runfolder
from jaxft.config import parse
from jaxft.observe import Observer
from jaxft.processes import Watch
from jaxft.registry import UserError
from jaxft.run import Run, Tracker
from jaxft.signals import StopSignals
from jaxft.train import _save, loop
from jaxft.writer import Writer
from tests import program

pytestmark = pytest.mark.slow
KILLS = 20

# What a run does in order: which change of which file is never made, and what stands (-: does not) in its place then.
STAGES = {
    "the tokenizer": ("run/.building-", 4, "run/.building-*/tokenizer/tokenizer_config.json -run/tokenizer"),
    "the token cache": ("tokens/.building-", 3, "run/tokenizer cache/tokens/.building-* -run/config.json"),
    "the record of the config": ("/config.json.tmp -> ", 1, "run/config.json.tmp -run/config.json"),
    "the start of the first save": ("2.tmp/meta.json", 1, "run/config.json run/checkpoints/2.tmp -run/checkpoints/2"),
    "the seal of a save": (
        "4.tmp/manifest.json",
        1,
        "run/checkpoints/4.tmp/state -run/checkpoints/4.tmp/manifest.json",
    ),
    "the publishing of a save": ("/6.tmp -> ", 1, "run/checkpoints/6.tmp/manifest.json -run/checkpoints/6"),
    # It is moved aside, which is the second change of that name, and then removed.
    "the pruning of an old save": ("/2.old", 3, "run/checkpoints/2.old/manifest.json -run/checkpoints/2"),
    "the export": (".hf.new", 3, "run/.hf.new -run/hf"),
    "the report": ("report.html", 1, "run/hf -run/report.html"),
    "the mark of the end": ("report.json.tmp -> ", 1, "run/report.html run/report.json.tmp -run/report.json"),
}


def broken(folder, upto):
    """A copy of the unbroken run as a kill after the checkpoint of step `upto` would leave it."""
    shutil.copytree(program.unbroken(), folder, ignore=shutil.ignore_patterns("report.*", "hf"))
    for step in program.steps(folder):
        if step > upto:
            shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def test_killed_at_every_stage_the_run_ends_alike_bit_for_bit(tmp_path):
    # A token cache of its own: that of the unbroken run is there already.
    compiled = str(cache.private_dir("compiled"))
    env = {"JAXFT_CACHE_DIR": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": compiled}
    shutil.copytree(cache.private_dir("numerics"), tmp_path / "cache" / "numerics")
    (tmp_path / "cache").chmod(0o700)
    for stage, (at, nth, left) in STAGES.items():
        done = program.run(tmp_path / "run", signals=(signal.SIGKILL,), at=at, nth=nth, env=env)
        assert done.code == -signal.SIGKILL, f"{stage}: {done}"
        for path in left.split():
            stands = any(tmp_path.glob(path.removeprefix("-")))
            assert stands is not path.startswith("-"), f"{stage}: {path} of {sorted((tmp_path / 'run').rglob('*'))}"
    done = program.run(tmp_path / "run", env=env)
    assert done.code == 0, done.err
    program.assert_same_end(tmp_path / "run", program.unbroken())


# What is being written when the disk is full -> the file that the message names.
FULL = {
    "tokenizer": ("run/.building-", 3),
    "tokens": ("tokens/.building-", 3),
    "config.json": ("run/config.json", 1),
    "batches.log": ("batches.log", 1),
    "checkpoints": ("4.tmp/meta.json", 1),
    "hf": (".hf.new", 3),
    "report.html": ("report.html", 1),
    "report.json": ("report.json", 1),
}


def test_a_full_disk_is_one_message_at_any_stage_and_with_room_the_same_command_goes_on(tmp_path):
    compiled = str(cache.private_dir("compiled"))
    env = {"JAXFT_CACHE_DIR": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": compiled}
    shutil.copytree(cache.private_dir("numerics"), tmp_path / "cache" / "numerics")
    (tmp_path / "cache").chmod(0o700)
    uncached = env | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # JAX only warns of a cache that has no room
    for name, (at, nth) in FULL.items():
        done = program.run(tmp_path / "run", full=True, at=at, nth=nth, env=uncached)
        named = tmp_path / ("cache" if name == "tokens" else "run") / name
        assert done.code == 1 and "could not be written" in done.err and str(named) in done.err, f"{name}: {done}"
        assert done.err.startswith("jaxft: ") and done.err.count("\n") == 1, f"{name}: {done.err}"
    done = program.run(tmp_path / "run", env=env)
    assert done.code == 0, done.err
    program.assert_same_end(tmp_path / "run", program.unbroken())


def test_killed_at_random_instants_the_run_ends_alike_bit_for_bit(tmp_path):
    seed = 20261124
    print(f"seed {seed}")
    rng = random.Random(seed)
    changes = int((program.unbroken().parent / "changes").read_text())
    killed, ended = 0, []
    while killed < KILLS or not ended:
        workdir = tmp_path / f"run{len(ended)}"
        if killed % 5 == 4:  # in C++ as well, whose changes of files are not seen; it may come too late
            child = program.start(program.command(workdir))
            time.sleep(rng.uniform(1, 4))
            child.kill()
            done = program.wait(child)
        else:
            left = changes // 2 if killed < KILLS else 0
            nth = rng.randrange(1, left) if left else changes + 1
            done = program.run(workdir, signals=(signal.SIGKILL,), nth=nth)
        killed += done.code == -signal.SIGKILL
        if done.code != -signal.SIGKILL:
            assert done.code == 0, done
            program.assert_same_end(workdir, program.unbroken())
            ended.append(workdir)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_loop_saves_and_says_where_and_the_same_command_goes_on(tmp_path, number, code):
    workdir = tmp_path / "run"
    # It comes while the checkpoint of step 4 is being written.
    done = program.run(workdir, signals=(number,), at="4.tmp/meta.json")
    assert done.code == code
    (line,) = done.err.splitlines()
    said = re.fullmatch(rf"jaxft: {number.name}: stopped after step (\d+), saved in (\S+); the same .* goes on", line)
    assert said, line
    step = int(said[1])
    assert said[2] == str(workdir / "checkpoints" / said[1]) and program.steps(workdir)[-1] == step >= 4
    assert len((workdir / "batches.log").read_text().splitlines()) == step
    assert program.leftovers(workdir) == []
    done = program.run(workdir)
    assert done.code == 0 and f"resuming from the checkpoint of step {step}" in done.out
    program.assert_same_end(workdir, program.unbroken())


def test_a_second_signal_ends_the_run_at_once_and_it_can_be_started_again(tmp_path):
    workdir = tmp_path / "run"
    done = program.run(workdir, signals=(signal.SIGTERM, signal.SIGINT), at="4.tmp/meta.json", busy=True)
    assert done.code == 130
    assert done.err == "jaxft: SIGINT: a second signal, stopped without saving; the same command goes on\n"
    assert program.steps(workdir) == [2]
    assert program.run(workdir).code == 0
    program.assert_same_end(workdir, program.unbroken())


@pytest.mark.parametrize("at", ["run/.building-", program.COMPILE])
def test_a_signal_before_the_first_step_ends_the_run_at_once_even_during_a_compile(tmp_path, at):
    started = time.monotonic()
    # Nothing compiled is there already. What keeps it busy takes minutes.
    env = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = program.run(tmp_path / "run", signals=(signal.SIGINT,), at=at, busy=True, env=env)
    assert time.monotonic() - started < 60
    assert (done.code, done.err) == (130, "jaxft: SIGINT: stopped; what was saved stands, the same command goes on\n")
    assert ("parameters: " in done.out) is (at == program.COMPILE) and "compiled in" not in done.out
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "at, error, says",
    [
        ("6.tmp/meta.json", errno.ENOSPC, r"no space: it needs \S+ kB, \S+ \S+ are free; free space or move the run"),
        ("checkpoints/6.tmp", errno.EROFS, "Read-only file system"),
        ("6.tmp/manifest.json", errno.EDQUOT, "no space: it needs"),  # in the background, while steps go on
    ],
)
def test_a_save_that_fails_ends_the_run_aloud_and_what_was_saved_stands(tmp_path, at, error, says):
    workdir = tmp_path / "run"
    done = program.run(workdir, at=at, fail=error)
    assert done.code == 1 and "Traceback" not in done.err and len(done.err.splitlines()) == 1, done.err
    assert re.search(rf"the checkpoint of step 6 could not be written to \S+: .*{says}", done.err), done.err
    assert done.err.endswith("Checkpoints that stand: 2, 4, 5\n") and program.steps(workdir) == [2, 4, 5]
    assert not (workdir / "report.json").exists()
    done = program.run(workdir)
    assert done.code == 0 and "resuming from the checkpoint of step 5" in done.out, done.err
    program.assert_same_end(workdir, program.unbroken())


def test_a_run_out_of_patience_stops_where_it_would_have_when_it_is_killed_on_the_way(tmp_path):
    """A rate at which no score moves: the first evaluation, at step 2, is the best, and the next one is the last."""
    still = {"optim__lr": 1e-12, "evaluate__every": "2 steps", "evaluate__patience": 1, "checkpoint__every": "1 step"}
    done = program.run(tmp_path / "whole", **still)
    assert done.code == 0 and "stopped early: no better accuracy in 1 evaluations" in done.out, done
    assert max(program.steps(tmp_path / "whole")) == 4 < program.STEPS
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["step"] == 2
    done = program.run(tmp_path / "run", signals=(signal.SIGKILL,), at="/4.tmp/meta.json", **still)
    assert done.code == -signal.SIGKILL and program.steps(tmp_path / "run")[-1] == 3
    done = program.run(tmp_path / "run", **still)
    assert "resuming from the checkpoint of step 3" in done.out and "stopped early" in done.out
    program.assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_flipped_byte_in_the_newest_checkpoint_is_said_aloud_and_the_one_before_it_used(tmp_path):
    workdir = broken(tmp_path / "run", upto=10)
    earlier, newest = program.steps(workdir)[-2:]
    victim = max((workdir / "checkpoints" / str(newest)).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = program.run(workdir)
    assert done.code == 0, done.err
    assert f"the checkpoint of step {newest} is damaged: {victim} has changed: sha256" in done.out
    assert f"using the one before it\nresuming from the checkpoint of step {earlier}\n" in done.out
    program.assert_same_end(workdir, program.unbroken())


def test_resuming_at_any_step_sees_the_same_batches_and_ends_in_the_same_bits(tmp_path):
    """Accumulated micro-batches, several epochs, their boundaries inside a batch; in one process for speed."""
    often = {"checkpoint__every": "1 step", "checkpoint__keep": 100, "evaluate__every": "100 steps"}
    raw = program.config(train__batch=16, train__accumulate=2, **often)
    folder = runfolder.RunFolder(tmp_path / "run")
    folder.create()
    run = Run(parse(raw), folder, (), lambda _text: None, StopSignals())
    assert run.cadence.total > 4 * run.inputs.rows("train") / 16  # epochs end on the way

    def end(start):
        logs = Writer(folder.path, total=run.cadence.total, tensorboard=False, wandb="", start=start)
        with logs as writer, Observer(run) as observer:
            assert loop(run, writer, Watch(lambda: None), observer) is None
        run.checkpoints.wait()
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(run.state)], (folder.path / "batches.log").read_text()

    whole = end(0)
    assert len(set(whole[1].split()[1::2])) == run.cadence.total  # no batch twice
    for step in range(1, run.cadence.total):
        run.state, run.step, run.tracker = run.checkpoints.restore(step, run.plan.abstract), step, Tracker()
        assert end(step) == whole, step
    run.checkpoints.close()


CHANGES = {
    "train.batch": ({"train__batch": 16}, "train.batch: 8 -> 16"),
    "input.length": ({"input__length": 12}, "input.length: 16 -> 12"),
    "tokenizer.vocab": ({"tokenizer__vocab": 150}, "tokenizer.vocab: 200 -> 150"),
    "seed": ({"seed": 1}, "seed: 0 -> 1"),
    "optim.lr": ({"optim__lr": 0.002}, "optim.lr: 0.001 -> 0.002"),
}


def test_a_changed_config_is_refused_with_every_difference(tmp_path):
    workdir = broken(tmp_path / "run", upto=10)
    before = program.snapshot(workdir)
    changed = {name: value for change, _ in CHANGES.values() for name, value in change.items()}
    done = program.run(workdir, **changed)
    assert done.code == 2 and "holds a run of another config" in done.err
    for _, line in CHANGES.values():
        assert f"  {line}\n" in done.err
    suggested = re.search(r"--allow_change=\S+", done.err)[0]
    assert set(suggested.partition("=")[2].split(",")) == {*CHANGES, "data"}
    # One of two allowed is not enough, a section allows its keys.
    done = program.run(workdir, "--allow_change=optim", optim__lr=0.002, seed=1)
    assert done.code == 2 and "seed: 0 -> 1" in done.err and "optim.lr:" not in done.err
    assert done.err.endswith("--allow_change=optim,seed\n")
    assert program.snapshot(workdir) == before
    # What is suggested is enough.
    done = program.run(workdir, suggested, **changed)
    assert done.code == 0 and "resuming from the checkpoint of step 10" in done.out, done.err


def test_other_data_and_another_tokenizer_under_the_same_names_are_refused(tmp_path):
    train = program.write_rows(tmp_path / "train.tsv")
    workdir = tmp_path / "run"
    assert program.run(workdir, data__train=train, signals=(signal.SIGTERM,), at="4.tmp/meta.json").code == 143
    before = program.snapshot(workdir)
    train.write_text(train.read_text() + "one more row\tred\n")
    done = program.run(workdir, data__train=train)
    assert done.code == 2 and "was made from other inputs: data.train changed" in done.err
    assert "--allow_change=data.train" in done.err
    vocabulary = workdir / "tokenizer" / "tokenizer.json"
    original = vocabulary.read_text()
    vocabulary.write_text(original.replace('"[UNK]"', '"[unk]"'))
    done = program.run(workdir, data__train=train)
    assert done.code == 2 and re.search(r"data.train, \S*tokenizer changed", done.err.replace("data.validation, ", ""))
    vocabulary.write_text(original)
    assert program.snapshot(workdir) == before
    kill = {"signals": (signal.SIGKILL,), "at": "6.tmp"}
    done = program.run(workdir, "--allow_change=data", data__train=train, **kill)
    assert done.code == -signal.SIGKILL
    assert re.search(r"changed since the checkpoint of step \d: data.train\nresuming", done.out), done


def test_another_mesh_needs_no_permission(tmp_path):
    workdir = broken(tmp_path / "run", upto=10)
    done = program.run(workdir, mesh__data=1, mesh__fsdp=2, devices=2)
    assert done.code == 0, done.err
    assert "changed since this run began: mesh.fsdp: 1 -> 2" in done.out
    assert "devices: 2 x cpu; mesh fsdp=2" in done.out and "resuming from the checkpoint of step 10" in done.out
    ours, other = (program.arrays(folder, program.STEPS) for folder in (workdir, program.unbroken()))
    assert max(np.abs(ours[name] - other[name]).max() for name in ours if name.startswith("params")) < 1e-5
    assert (workdir / "batches.log").read_bytes() == (program.unbroken() / "batches.log").read_bytes()


def test_the_second_of_two_processes_in_one_folder_fails_at_once(tmp_path):
    workdir = broken(tmp_path / "run", upto=10)
    first = program.start(program.command(workdir))
    try:
        for line in first.stdout:
            if "parameters" in line:
                break
        else:
            pytest.fail(f"it ended before its time: {program.wait(first)}")
        first.send_signal(signal.SIGSTOP)
        before = program.snapshot(workdir)
        done = program.run(workdir)
        assert done.code == 2 and f"in use by pid {first.pid} on host" in done.err
        assert program.snapshot(workdir) == before
        first.send_signal(signal.SIGCONT)
        assert program.wait(first).code == 0
    finally:
        first.kill()
    program.assert_same_end(workdir, program.unbroken())


@pytest.mark.parametrize("part", ["params", "opt", "ema"])
def test_no_part_of_a_state_is_saved_that_is_not_finite(tmp_path, part):
    """In one process: no step is known to overflow the moments alone."""
    folder = runfolder.RunFolder(tmp_path / "run")
    folder.create()
    run = Run(parse(program.config(train__ema=0.9)), folder, (), lambda _text: None, StopSignals())
    _save(run, best=False)
    run.checkpoints.wait()

    def overflown(x):
        return x + np.inf if x.dtype == np.float32 else x

    run.state = dataclasses.replace(run.state, **{part: jax.tree.map(overflown, getattr(run.state, part))})
    run.step = 1
    said = {"params": "parameters", "opt": "optimizer state", "ema": "moving average"}[part]
    with pytest.raises(UserError, match=rf"not finite after step 1: {said}\. This is not saved.*stand: 0\.") as error:
        _save(run, best=False)
    run.checkpoints.close()
    assert error.value.code == 2 and program.steps(folder.path) == [0] and program.leftovers(folder.path) == []


def test_losses_that_are_not_finite_stop_the_run_with_what_was_good(tmp_path):
    workdir = tmp_path / "run"
    done = program.run(workdir, optim__lr=1e30, train__max_bad_steps=3, train__log_every="50 steps")
    assert done.code == 2, "the same command would come to the same steps, and is not to be given again"
    said = re.search(r"not finite in 3 steps in a row \(train.max_bad_steps\), (\d+) to (\d+);", done.err)
    assert said and "Traceback" not in done.err, done.err
    first, last = int(said[1]), int(said[2])
    assert last == first + 2
    assert re.search(
        rf"The batch of step {first} \(line {first} of \S+batches.log\) has \d+ examples: \S+tsv:\d+, ", done.err
    )
    kept = program.steps(workdir)
    assert f"Checkpoints that stand: {', '.join(map(str, kept))}." in done.err and kept and max(kept) < first
    for step in kept:
        state = program.arrays(workdir, step)
        assert all(np.isfinite(array).all() for array in state.values()) and state["skipped"] == 0
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [record for record in records if "loss" in record]
    assert logged["loss"] == "NaN"
    # Each is named when it happens, whatever train.log_every says.
    skipped = {record["step"]: record["skipped_examples"] for record in records if "skipped_examples" in record}
    assert list(skipped) == [first, first + 1, last]
    for step, examples in skipped.items():
        assert 0 < len(examples) <= 8 and f"examples: {', '.join(examples)}" in done.out
        assert f"step {step}: loss or gradients were not finite, the update is left out" in done.out
    assert not (workdir / "report.json").exists()


def test_the_same_command_twice_ends_in_the_same_bits_with_and_without_a_compile_cache(tmp_path):
    env = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = program.run(tmp_path / "run", env=env)
    assert done.code == 0, done.err
    program.assert_same_end(tmp_path / "run", program.unbroken())


def test_a_finished_run_is_not_continued_under_another_config():
    before = program.snapshot(program.unbroken())
    done = program.run(program.unbroken(), "--allow_change=train.duration", train__duration="20 steps")
    assert done.code == 2 and "holds a finished run of another config:\n  train.duration: '12 steps'" in done.err
    assert "--allow_change" not in done.err and f"--config.model.hf={program.unbroken() / 'hf'}" in done.err
    assert program.snapshot(program.unbroken()) == before


def test_a_finished_run_started_again_says_so_and_does_nothing():
    before = program.snapshot(program.unbroken())
    done = program.run(program.unbroken())
    assert (done.code, done.err) == (0, "") and f"{program.unbroken()} is finished: see report.json" in done.out
    assert program.snapshot(program.unbroken()) == before
