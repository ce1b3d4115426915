"""The one way out of every verb: a message and a code for what a user can mend, a traceback for a mistake of ours."""

import errno
import gzip
import json
import subprocess
import sys

import pytest

from jaxft import cli, disk, evaluate, main, memory, predict
from tests import program, verbs_run

VERBS = {"main": main.main, "predict": predict.main, "evaluate": evaluate.main}


@pytest.fixture
def left(monkeypatch):
    """What the process would have left with: messages and codes."""
    said = []
    monkeypatch.setattr(cli, "leave", lambda message, code: said.append((message, code)))
    return said


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("INTERNAL: write: No space left on device"),
    ],
)
def test_a_full_disk_is_one_message_with_code_1(left, error):
    cli.guarded(fails(error))
    ((message, code),) = left
    assert code == 1 and message.startswith("a file could not be written: ") and "free space there" in message


def test_the_file_that_was_written_is_named_also_when_its_closing_fails_as_well(left, tmp_path):
    def work():
        with disk.writing(tmp_path / "x.jsonl"), open("/dev/full", "w", buffering=1) as file:
            file.write("a line\n")

    cli.guarded(work)
    assert left[0][0].startswith(f"{tmp_path / 'x.jsonl'} could not be written: No space left on device; free")


def test_an_error_that_nobody_foresaw_keeps_its_traceback(left):
    for error in (OSError(errno.EIO, "Input/output error"), ValueError("ours")):
        with pytest.raises(type(error), match=str(error.args[-1])):
            cli.guarded(fails(error))
    assert left == []


@pytest.mark.parametrize("verb", VERBS)
def test_out_of_memory_names_the_flags_of_the_verb(left, monkeypatch, verb):
    shortage = RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    monkeypatch.setattr(main, "_train", fails(shortage))
    monkeypatch.setattr(main.app, "run", lambda work, flags_parser: work(None))
    for module in (predict, evaluate):
        monkeypatch.setattr(module, "_arguments", fails(shortage))
    VERBS[verb]()
    ((message, code),) = left
    assert code == 1 and message.startswith("out of memory: RESOURCE_EXHAUSTED")
    assert ("--config.train.batch" in message) == ("checkpoint is intact" in message) == (verb == "main")
    assert ("--length lower" in message) == (verb != "main")


def test_memory_and_ctrl_c_without_more_to_say(left):
    cli.guarded(fails(MemoryError()))
    cli.guarded(fails(KeyboardInterrupt()))
    assert left[0][0].startswith("out of memory: the host has none left. ")
    assert left[1] == ("SIGINT: stopped; nothing was written", 130)
    assert memory.TRAINING_FIX not in left[0][0]


# ---- the real program ----

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def limited(size, module, *flags, **env):
    """`python -m module` where no file may be larger than `size` bytes."""
    command = [sys.executable, "-c", LIMITED, str(size), module, *map(str, flags)]
    # Or the file without room would be one of the compile cache, at which JAX only warns.
    env = program.environment(JAX_ENABLE_COMPILATION_CACHE="false", **env)
    return subprocess.run(command, cwd=program.ROOT, env=env, capture_output=True, text=True)


def one_message(done, names):
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith(f"jaxft: {names} could not be written: "), done.stderr


def test_predictions_that_find_no_room_leave_nothing(tmp_path):
    rows = verbs_run.write_rows(tmp_path / "x.jsonl", [{"text": "grass leaf " * 9}] * 400)
    flags = (f"--run={program.unbroken()}", f"--input={rows}", f"--output={tmp_path / 'out.jsonl'}")
    one_message(limited(20_000, "jaxft.predict", *flags), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_report_that_finds_no_room(tmp_path):
    (tmp_path / "scores.json").symlink_to("/dev/full")
    flags = (f"--run={program.unbroken()}", f"--output={tmp_path / 'scores.json'}")
    one_message(verbs_run.program("evaluate", *flags), tmp_path / "scores.json")


def test_a_gzip_file_that_finds_no_room_to_be_unpacked(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": "a", "label": "red"}) + "\n" for _ in range(9000))
    flags = (f"--run={program.unbroken()}", f"--data={tmp_path / 'x.jsonl.gz'}")
    one_message(limited(100_000, "jaxft.evaluate", *flags, TMPDIR=str(tmp_path)), tmp_path)


def test_ctrl_c_in_a_verb_says_that_nothing_was_written():
    code = "import os, signal; from jaxft import cli; cli.guarded(lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], cwd=program.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "jaxft: SIGINT: stopped; nothing was written\n")
