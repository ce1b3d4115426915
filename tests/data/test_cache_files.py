"""Where caches are built: by live processes side by side, and cleaned after dead ones."""

import contextlib
import subprocess
import sys
import tempfile

import pytest

from jaxft.data import cache_files

# Holds a folder with a file in it, says so, and waits to be killed.
BUILDER = """
import pathlib, sys
from jaxft.data import cache_files
with cache_files.building(pathlib.Path(sys.argv[1])) as aside:
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
        with cache_files.building(tmp_path) as ours:
            assert {path.name for path in tmp_path.iterdir()} == {needed, ours.name}
        assert [path.name for path in tmp_path.iterdir()] == [needed]
        assert (tmp_path / needed / "half").read_text() == "of a cache"


def test_a_folder_taken_for_a_left_over_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    made = []

    def made_and_removed_by_another(**options):
        made.append(make(**options))
        if len(made) == 1:
            with cache_files.building(tmp_path):
                pass
        return made[-1]

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", made_and_removed_by_another)
    with cache_files.building(tmp_path) as aside:
        assert str(aside) == made[-1] != made[0] and aside.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_nothing_and_one_that_is_renamed_stays(tmp_path):
    with pytest.raises(RuntimeError), cache_files.building(tmp_path / "caches") as aside:
        raise RuntimeError
    with cache_files.building(tmp_path / "caches") as aside:
        aside.rename(tmp_path / "caches" / "whole")
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["whole"]
