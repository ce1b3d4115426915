"""Reading and choosing docstrings; the whole data set is tested in tests/test_every_dataset.py."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from jaxft.data import docstring_reader, docstrings
from jaxft.registry import UserError

LONG = "long enough to tell something about the library it stands in"

SOURCE = f'''"""  Module: {LONG}.

    indented
"""
class A:
    """Class: {LONG}."""
    def f(self):
        """Short."""
        def g(): "Inner: {LONG}."
    async def h(self): f"not a docstring: {LONG}"
try:
    import x
except ImportError:
    if True:
        def k(): "In a branch: {LONG}."
def half(): "Half of a pair \\ud800: {LONG}."
value = lambda: "no docstring: {LONG}"
'''


def read(tmp_path, source):
    path = tmp_path / "m.py"
    path.write_bytes(source)
    return list(docstring_reader.read_file(str(path), "pkg.m"))


def test_docstrings_are_named_and_cleaned(tmp_path):
    assert read(tmp_path, SOURCE.encode()) == [
        ("pkg.m", f"Module: {LONG}.\n\nindented"),
        ("pkg.m.A", f"Class: {LONG}."),
        ("pkg.m.A.f.g", f"Inner: {LONG}."),
        ("pkg.m.k", f"In a branch: {LONG}."),
    ]


@pytest.mark.parametrize("source", [b"def f(:", b"\xff\xfe", b"x = '\0'", b"", b"(" * 100_000])
def test_a_file_that_does_not_parse_has_none(tmp_path, source):
    assert read(tmp_path, source) == []


def test_the_reader_runs_without_jaxft_and_without_site_packages(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    done = subprocess.run(
        [sys.executable, "-I", "-S", docstring_reader.__file__],
        input=json.dumps([[str(tmp_path / "m.py"), "pkg.m"]]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)[0] for line in done.stdout.splitlines()] == ["pkg.m", "pkg.m.A", "pkg.m.A.f.g", "pkg.m.k"]


def test_a_text_comes_once_and_one_of_two_libraries_not_at_all():
    found = {"jax": [("jax.a", "one"), ("jax.b", "one"), ("jax.c", "both")], "flax": [("flax.c", "both")]}
    rows = list(docstrings.select(found))
    assert [(row["text"], row["label"], row["name"]) for row in rows] == [("one", "jax", "jax.a")]


def test_the_split_of_a_text_is_stable():
    rows = list(docstrings.select({"jax": [(f"jax.f{i}", f"text {i}") for i in range(2000)]}))
    splits = [docstrings.split_of(row["key"]) for row in rows]
    assert 1500 < splits.count("train") < 1700 and 140 < splits.count("test") < 260
    assert splits[:6] == ["train", "train", "train", "train", "train", "train"]
    alone = next(docstrings.select({"jax": [("jax.f7", "text 7")]}))
    assert alone["key"] == rows[7]["key"]


def test_a_missing_library_is_named_with_its_pip_command(monkeypatch):
    version = metadata.version

    def without_rich(name):
        if name in ("rich", "scikit-learn"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_rich)
    with pytest.raises(UserError, match="pip install rich scikit-learn"):
        docstrings.docstrings(data_dir="unused")


def test_of_two_processes_that_build_at_once_one_wins(tmp_path, monkeypatch):
    found = {"jax": [(f"jax.f{i}", f"text {i}") for i in range(200)]}
    prepare, calls = docstrings._prepare, []

    def read_while_another_finishes():
        calls.append(1)
        if len(calls) == 1:
            prepare(tmp_path, "same", {})
        return found

    monkeypatch.setattr(docstrings, "read_library_docstrings", read_while_another_finishes)
    prepare(tmp_path, "same", {})
    assert len(calls) == 2
    builder = docstrings.make_builder(tmp_path, "same", {})
    assert sum(split.num_examples for split in builder.info.splits.values()) == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["docstrings"]


def test_files_of_tests_and_vendored_copies_are_not_read():
    files = docstrings.python_files("numpy")
    assert len(files) > 100 and files == docstrings.python_files("numpy")
    assert ("numpy.ma.core" in {module for _, module in files}) and "numpy" in {module for _, module in files}
    assert not any("tests" in module.split(".") for _, module in files)
    assert not any("site-packages" in path for path, _ in docstrings.python_files("python"))
