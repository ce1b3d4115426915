"""Records of files, and what becomes of junk: counted where it stands, never dropped in silence."""

import gzip
import io
import json
import random

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from jaxft.corpora.sources import Files, Rows, chunks, text_of
from jaxft.data.files import read_rows
from jaxft.data.packed import _frames
from jaxft.data.text_formats import LONGEST
from jaxft.registry import BadRow, UserError

ZSTANDARD = zstandard.ZstdCompressor(write_checksum=True)  # as the program zstd does


def read(*paths, unit="line", column="text"):
    """[(file name, line, text or the reason there is none)]."""
    source = Files(paths=[str(path) for path in paths], unit=unit)
    out = []
    for record in source.records(column):
        try:
            text = text_of(record.raw, source.format(record.file), column)
        except BadRow as error:
            text = f"BAD {error}"
        out.append((source.names[record.file].rpartition("/")[2], record.line, text))
    return out


def compress(path, content):
    packed = gzip.compress(content) if path.suffix == ".gz" else ZSTANDARD.compress(content)
    path.write_bytes(packed)
    return path


def test_every_format_gives_its_documents_with_their_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo\r\nthree", encoding="utf-8")
    rows = [{"text": "four", "other": 1}, {"text": "fünf"}]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    compress(tmp_path / "b.jsonl.gz", content)
    compress(tmp_path / "c.jsonl.zst", content)
    parquet.write_table(pyarrow.table({"text": ["six", "seven"], "n": [1, 2]}), tmp_path / "d.parquet")
    assert read(tmp_path / "*.*") == [
        ("a.txt", 1, "one"),
        ("a.txt", 3, "two"),
        ("a.txt", 4, "three"),
        ("b.jsonl.gz", 1, "four"),
        ("b.jsonl.gz", 2, "fünf"),
        ("c.jsonl.zst", 1, "four"),
        ("c.jsonl.zst", 2, "fünf"),
        ("d.parquet", 1, "six"),
        ("d.parquet", 2, "seven"),
    ]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", [(1, "one"), (2, "two"), (5, "three")]),
        ("paragraph", [(1, "one\ntwo"), (5, "three")]),
        ("file", [(1, "one\ntwo\n\n \nthree")]),
    ],
)
def test_a_text_file_is_lines_paragraphs_or_one_document(tmp_path, unit, expected):
    compress(tmp_path / "a.txt.zst", b"one\ntwo\n\n \nthree\n")
    assert [(line, text) for _, line, text in read(tmp_path / "a.txt.zst", unit=unit)] == expected


def test_junk_between_documents_is_told_with_its_line_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"text": "first"}',
        b"\x00\x01\x02\xff binary",
        b'{"text": "\xff"}',
        b'{"text": "cut off',
        b'["a list"]',
        b'{"words": "no text"}',
        b'{"text": 7}',
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b'{"text": "' + b"x" * (50 * 2**20) + b'"}',
        b'{"text": "last"}',
    ]
    found = read(compress(tmp_path / "x.jsonl.gz", b"\n".join(lines)))
    assert [line for _, line, _ in found] == list(range(1, 12))
    reasons = ["first", "NUL", "not UTF-8", "not JSON", "a JSON list", "no column", "a int", "is empty", "surrogate"]
    reasons += [f"longer than {LONGEST:,} bytes", "last"]
    for (_, _, text), reason in zip(found, reasons, strict=True):
        assert reason in text and text.startswith("BAD") == (reason not in ("first", "last"))


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_gives_what_is_before_the_damage_and_one_bad_record(tmp_path, ending, damage):
    rng = random.Random(0)
    content = "".join(f"line {i} {rng.random()}\n" for i in range(20_000)).encode()
    path = compress(tmp_path / f"x.txt.{ending}", content)
    packed = bytearray(path.read_bytes())
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    else:
        packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    (tmp_path / "y.txt").write_text("after\n")
    *before, broken, after = read(path, tmp_path / "y.txt")
    # One flipped byte may be noticed only by the check sum at the end.
    assert broken[2].startswith("BAD the rest of the file cannot be unpacked") and broken[1] == len(before) + 1
    assert len(before) < 20_000 or damage == "flipped"
    assert after == ("y.txt", 1, "after")
    with pytest.raises(UserError, match=f"not a whole {'gzip' if ending == 'gz' else 'Zstandard'} file"):
        list(read_rows(str(path)))


def test_a_small_archive_of_much_is_unpacked_piece_by_piece():
    packed = io.BytesIO(ZSTANDARD.compress(bytes(2**27)))
    sizes = [len(piece) for piece in _frames(packed)]
    assert sum(sizes) == 2**27 and max(sizes) <= 2**26 and packed.tell() < 2**14


def test_other_readers_of_files_read_zstandard_too(tmp_path):
    path = compress(tmp_path / "x.jsonl.zst", b'{"text": "one"}\n{"text": "two"}\n')
    assert [row for _, row in read_rows(str(path))] == [{"text": "one"}, {"text": "two"}]
    path.write_bytes(path.read_bytes() + ZSTANDARD.compress(b'{"text": "of a second frame"}\n'))
    assert [row["text"] for _, row in read_rows(str(path))] == ["one", "two", "of a second frame"]


def test_a_parquet_file_without_the_column_or_with_damage_is_one_bad_record(tmp_path):
    parquet.write_table(pyarrow.table({"words": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no such thing PAR1")
    a, b = read(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert "none of the 2 rows has a column 'text'; columns: words" in a[2] and "cannot be read" in b[2]


def test_rows_of_any_data_set_are_documents(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('text,n\n"one, two",1\nthree,2\nbroken\n')
    source = Rows(data=dict(name="files", train=str(path), validation="", test="", holdout=0.0), split="train")
    bad, *rows = source.records("text")
    assert isinstance(bad.raw, BadRow) and bad.line == 4
    assert [text_of(record.raw, "row", "text") for record in rows] == ["one, two", "three"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "source.paths is empty"),
        (["*.jsonl"], "no file matches"),
        (["absent.jsonl"], "does not exist"),
        (["x.csv"], "must end in one of .jsonl, .parquet, .txt"),
        (["x.txt", "x.txt"], "is named twice"),
    ],
)
def test_names_that_are_no_files_are_refused(tmp_path, paths, message):
    (tmp_path / "x.txt").write_text("one")
    (tmp_path / "x.csv").write_text("one")
    with pytest.raises(UserError, match=message):
        Files(paths=[str(tmp_path / path) for path in paths], unit="line")


def test_chunks_hold_all_records_in_order(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{'word ' * (i % 50)}{i}\n" for i in range(500)))
    records = list(Files(paths=[str(path)], unit="line").records("text"))
    made = list(chunks(records, 4000))
    assert [record for chunk in made for record in chunk] == records and len(made) > 5
