"""Two files that go line by line."""

import gzip
import itertools

import pytest

from jaxft.data.parallel import parallel
from jaxft.registry import UserError

SOURCE = ["ein Hund", "", "zwei  Katzen ", "", "naïve\r"]
TARGET = ["a dog", "", "two cats", "something", "naive\r"]


def write(folder, source=SOURCE, target=TARGET, name="train"):
    for language, lines in (("de", source), ("en", target)):
        (folder / f"{name}.{language}.gz").write_bytes(gzip.compress("".join(f"{x}\n" for x in lines).encode()))
    return f"{folder}/{name}.{{de,en}}.gz"


def read(place, **given):
    return parallel(**{"train": place, "validation": "", "test": "", "holdout": 0.0} | given).splits


def test_line_i_of_one_belongs_to_line_i_of_the_other(tmp_path):
    train = read(write(tmp_path))["train"]
    assert list(train.rows) == [
        {"source": "ein Hund", "target": "a dog"},
        {"source": "zwei  Katzen ", "target": "two cats"},
        {"source": "", "target": "something"},
        {"source": "naïve", "target": "naive"},
    ], "a line that is blank in both is no row, one that is blank in one is for the task to refuse"
    assert train.where(2) == f"{tmp_path}/train.de.gz:4"


def test_names_may_differ_in_any_part(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1\n2")
    (tmp_path / "y.txt").write_text("eins\nzwei\n")
    rows = read(f"{{{tmp_path}/a/x,{tmp_path}/y.txt}}")["train"].rows
    assert list(rows) == [{"source": "1", "target": "eins"}, {"source": "2", "target": "zwei"}]


def test_files_that_are_not_as_long_are_refused_by_both_names(tmp_path):
    place = write(tmp_path, source=[*SOURCE, "mehr"])
    with pytest.raises(UserError, match=r"data\.train: .*train\.de\.gz has 6 lines and .*train\.en\.gz has 5"):
        read(place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("train.en.gz", r"data\.train='train\.en\.gz' must name two files in one.*quote it"),
        ("{a,b}{c,d}", "must name two files"),
        ("train.{de,fr}.gz", r"train\.fr\.gz' does not exist; did you mean \"train\.de\.gz\"|fr\.gz' does not exist"),
    ],
)
def test_a_place_that_is_not_two_files_is_refused(tmp_path, monkeypatch, place, message):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read(place)


def test_a_line_that_is_not_text_is_a_bad_row_and_moves_no_other(tmp_path):
    place = write(tmp_path)
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"a dog\n\n\xff\nx\ny\n"))
    train = read(place)["train"]
    assert [row["target"] for row in train.rows] == ["a dog", "x", "y"]
    assert train.bad == [(f"{tmp_path}/train.de.gz:3", "the target: not UTF-8 (byte 1 of the row: invalid start byte)")]


def test_what_is_held_out_depends_on_the_pair_alone(tmp_path):
    pairs = [f"Satz {i}" for i in range(100)], [f"sentence {i}" for i in range(100)]
    both = read(write(tmp_path, *pairs), holdout=0.3)
    again = read(write(tmp_path, *(side[::-1] for side in pairs), name="other"), holdout=0.3)
    assert {name: len(split.rows) for name, split in both.items()} == {
        name: len(split.rows) for name, split in again.items()
    }
    assert sorted(row["source"] for row in both["validation"].rows) == sorted(
        row["source"] for row in again["validation"].rows
    )
    assert len(both["validation"].rows) in range(15, 46) and not {row["source"] for row in both["train"].rows} & {
        row["source"] for row in both["validation"].rows
    }
    assert len({split.fingerprint for split in itertools.chain(both.values(), again.values())}) == 4
