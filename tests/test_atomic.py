"""What is written beside its place: whole or not there, by live processes side by side, cleaned after dead ones."""

import contextlib
import subprocess
import sys
import tempfile

import pytest

from jaxft import atomic


def test_a_file_is_replaced_as_a_whole(tmp_path):
    for text in ("first, longer", "second"):
        atomic.write(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_file_as_it_was(tmp_path, shared):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic.file(tmp_path / "file", shared=shared) as draft:
        draft.write_text("half of a new one")
        assert (tmp_path / "file").read_text() == "old"
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_is_there_when_it_is_whole_and_the_first_of_two_stays(tmp_path):
    path = tmp_path / "runs" / "tokenizer"
    with atomic.folder(path) as late, atomic.folder(path) as early:
        (early / "file").write_text("of the first")
        (late / "file").write_text("of the second")
        assert not path.exists()
    assert [(one.name, one.read_text()) for one in path.iterdir()] == [("file", "of the first")]
    with pytest.raises(RuntimeError), atomic.folder(tmp_path / "runs" / "other") as new:
        (new / "file").write_text("half")
        raise RuntimeError
    assert [one.name for one in path.parent.iterdir()] == ["tokenizer"]
    assert path.stat().st_mode == path.parent.stat().st_mode, "as open to others as any folder"


def test_a_folder_that_cannot_take_its_name_is_an_error(tmp_path):
    with pytest.raises(OSError, match="runs"), atomic.folder(tmp_path / "runs" / "a") as new:
        new.rename(new.with_name("elsewhere"))


# Holds a folder with a file in it, says so, and waits to be killed.
BUILDER = """
import pathlib, sys
from jaxft import atomic
with atomic.building(pathlib.Path(sys.argv[1])) as aside:
    (aside / "half").write_text("of a cache")
    print(aside.name, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def builder(folder):
    """(process, name of its folder) of a builder in the middle of its work."""
    command = [sys.executable, "-c", BUILDER, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_what_a_killed_builder_left_goes_and_what_a_live_one_needs_stays(tmp_path):
    with builder(tmp_path) as (dead, left_over), builder(tmp_path) as (_, needed):
        dead.kill()
        dead.wait()
        assert {path.name for path in tmp_path.iterdir()} == {left_over, needed}
        with atomic.building(tmp_path) as ours:
            assert {path.name for path in tmp_path.iterdir()} == {needed, ours.name}
        assert [path.name for path in tmp_path.iterdir()] == [needed]
        assert (tmp_path / needed / "half").read_text() == "of a cache"


def test_a_folder_taken_for_a_left_over_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    made = []

    def made_and_removed_by_another(**options):
        made.append(make(**options))
        if len(made) == 1:
            with atomic.building(tmp_path):
                pass
        return made[-1]

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", made_and_removed_by_another)
    with atomic.building(tmp_path) as aside:
        assert str(aside) == made[-1] != made[0] and aside.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_nothing_and_one_that_is_renamed_stays(tmp_path):
    with pytest.raises(RuntimeError), atomic.building(tmp_path / "caches") as aside:
        raise RuntimeError
    with atomic.building(tmp_path / "caches") as aside:
        aside.rename(tmp_path / "caches" / "whole")
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["whole"]
