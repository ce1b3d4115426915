"""Files of every format, whole and broken (PERF_RELIABILITY B3 #14)."""

import gzip
import json
import tracemalloc

import pytest

from jaxft.data import files as files_module
from jaxft.data.files import files, read_rows, read_split
from jaxft.registry import BadRow, UserError

ROWS = [{"text": "naïve", "label": "1"}, {"text": "two words", "label": "b"}, {"text": "third", "label": ""}]


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def content(name, rows):
    if name == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    separator = {"csv": ",", "tsv": "\t"}[name]
    return "".join(separator.join(cells) + "\n" for cells in [list(rows[0]), *(row.values() for row in rows)]).encode()


def rows_and_faults(path):
    split = read_split(str(path))
    return list(split.rows), [(where.rpartition(":")[2], reason) for where, reason in split.bad]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name, packed):
    path = tmp_path / f"x.{name}"
    if name == "parquet":
        write_parquet(path, ROWS)
    else:
        path.write_bytes(content(name, ROWS))
    if packed:
        path = tmp_path / f"x.{name}.gz"
        path.write_bytes(gzip.compress((tmp_path / f"x.{name}").read_bytes()))
    split = read_split(str(path))
    assert list(split.rows) == ROWS
    assert split.rows[-1] == ROWS[-1] and split.rows[1:] == ROWS[1:]
    assert split.where(1) == f"{path}:{3 if name in ('csv', 'tsv') else 2}"
    assert [row for _, row in read_rows(str(path))] == ROWS


def test_txt_is_one_text_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes('first, "line"\t!\n\n  \nsecond é'.encode())
    assert list(read_split(str(path)).rows) == [{"text": 'first, "line"\t!'}, {"text": "second é"}]


@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv"])
def test_byte_order_mark_and_crlf_are_no_content(tmp_path, name):
    path = tmp_path / f"x.{name}"
    path.write_bytes(b"\xef\xbb\xbf" + content(name, ROWS).replace(b"\n", b"\r\n"))
    assert list(read_split(str(path)).rows) == ROWS


def test_bad_lines_are_named_and_the_others_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [b'{"a": 1}', b"[1]", b'{"a": }', b'{"a": "\xff"}', b'{"a": "\x00"}', b'{"a": "\\ud800"}', b"[" * 20000]
    path.write_bytes(b"\n".join([*lines, b'{"a": 2}']))
    rows, faults = rows_and_faults(path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert [line for line, _ in faults] == ["2", "3", "4", "5", "6", "7"]
    for (_, reason), word in zip(faults, ["list", "not JSON", "UTF-8", "NUL", "surrogate", "recursion"], strict=True):
        assert word in reason


def test_ragged_rows_are_named(tmp_path):
    for name, separator in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"x.{name}"
        path.write_text("\n".join(separator.join(cells) for cells in ("ab", "12", "123", "1", "34")))
        rows, faults = rows_and_faults(path)
        assert rows == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
        assert faults == [("3", "has 3 fields; the header has 2"), ("4", "has 1 fields; the header has 2")]


def test_csv_quotes(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\n"x, ""y""\n\nz",1\n5" disk,2\n"never closed,3\nnext,4\n"\xe2\x80\xa8",5\n')
    rows, faults = rows_and_faults(path)
    assert [row["a"] for row in rows] == ['x, "y"\n\nz', '5" disk', "next", "\u2028"]
    assert [line for line, _ in faults] == ["6"]
    assert read_split(str(path)).where(2).endswith(":7")


def test_tsv_has_no_quoting(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('a\tb\n"open\t1\nx"\t2\n')
    assert [row["a"] for row in read_split(str(path)).rows] == ['"open', 'x"']


def test_a_line_of_50_mb_is_a_bad_row_and_is_not_parsed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * 50_000_000 + b'"}\n{"a": 2}\n')
    tracemalloc.start()
    rows, faults = rows_and_faults(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 2 and faults[0][0] == "2" and "50,000,010 bytes" in faults[0][1]
    assert peak < 5_000_000


def test_a_large_file_is_not_held(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "%s"}\n' % (b"x" * 10_000) * 3000)  # 30 MB
    tracemalloc.start()
    split = read_split(str(path))
    assert sum(len(row["text"]) for row in split.rows) == 30_000_000
    assert sum(len(row["text"]) for _, row in read_rows(str(path)) if not isinstance(row, BadRow)) == 30_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("x.csv", b"a,b,a\n1,2,3\n", "'a' twice"),
        ("x.tsv", b"a\t\n1\t2\n", "without a name"),
        ("x.csv", b"\xff,b\n1,2\n", "UTF-8"),
        ("x.csv", b"a,b\n", "no rows"),
        ("x.jsonl", b"", "empty"),
        ("x.jsonl", b"\n\r\n", "no rows"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "gzip"),
        ("x.jsonl.gz", b'{"a": 1}\n', "gzip"),
        ("x.parquet", b"no parquet at all", "parquet"),
        ("x.xlsx", b"x", ".jsonl"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path, name, data, word):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match="x") as caught:
        files(train=str(path), validation="", test="", holdout=0.0)
    assert word in str(caught.value) and name in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r'data.train=.*did you mean "train.jsonl"'):
        files(train=str(tmp_path / "trian.jsonl"), validation="", test="", holdout=0.0)
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        files(train=str(tmp_path / "no" / "x.jsonl"), validation="", test="", holdout=0.0)
    with pytest.raises(UserError, match="all empty"):
        files(train="", validation="", test="", holdout=0.0)


def test_all_files_are_looked_for_before_any_is_read(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    monkeypatch.setattr(files_module, "open_table", lambda path, field: pytest.fail(f"{field} is read"))
    for split in ("validation", "test"):
        given = {"validation": "", "test": "", split: str(tmp_path / "dev.jsonl")}
        with pytest.raises(UserError, match=rf"data\.{split}=.* does not exist"):
            files(train=str(tmp_path / "train.jsonl"), holdout=0.0, **given)
        with pytest.raises(UserError, match=rf"data\.{split}=.* must end in one of"):
            files(train=str(tmp_path / "train.jsonl"), holdout=0.0, **given | {split: "dev.doc"})


@pytest.mark.parametrize(("good", "holdout"), [(0, 0.0), (0, 0.5), (1, 0.5)])
def test_a_json_array_is_no_jsonl_and_its_first_lines_say_so(tmp_path, good, holdout):
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": str(i), "label": "a"}) for i in range(9)]
    path.write_text("\n".join(["[", *(f"{row}," for row in rows), *rows[:good], "]"]))
    with pytest.raises(UserError) as caught:
        files(train=str(path), validation="", test="", holdout=holdout)
    first, *quoted, fix = str(caught.value).splitlines()
    if good:
        assert "data.holdout=0.5 of 1 rows leaves" in first and "; 11 other rows cannot be read:" in first
        quoted.append(fix)
    else:
        assert first == f"data.train={str(path)!r}: none of its 11 rows can be read:"
    assert [line.partition(": not JSON (")[0] for line in quoted] == [f"  {path}:{i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet"])
def test_holdout_is_a_stable_partition_by_content(tmp_path, name):
    rows = [{"text": f"text {i % 700}", "label": str(i % 700 % 3)} for i in range(1000)]
    path = tmp_path / f"x.{name}"

    def write(some):
        write_parquet(path, some) if name == "parquet" else path.write_bytes(content(name, some))

    def held(some):
        write(some)
        splits = files(train=str(path), validation="", test="", holdout=0.2).splits
        return [[row["text"] for row in splits[side].rows] for side in ("train", "validation")]

    train, validation = held(rows)
    assert sorted(train + validation) == sorted(row["text"] for row in rows)
    assert not set(train) & set(validation)
    assert 120 < len(validation) < 280
    # Other rows coming and going move none of these.
    fewer = [row for row in rows if not row["text"].endswith("1")]
    assert held(fewer)[1] == [text for text in validation if not text.endswith("1")]


def test_nothing_is_held_out_beside_a_validation_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"x": 1}\n' * 20)
    train, validation = (str(tmp_path / f"{name}.jsonl") for name in ("a", "b"))
    assert len(files(train=train, validation=validation, test="", holdout=0.5).splits["train"].rows) == 20
    with pytest.raises(UserError, match="at least 0"):
        files(train="a.jsonl", validation="", test="", holdout=1.0)


def test_fingerprint_follows_the_bytes(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    before = read_split(str(path)).fingerprint
    assert read_split(str(path)).fingerprint == before
    path.write_text('{"a": 2}\n')
    assert read_split(str(path)).fingerprint != before


def test_equal_rows_with_other_line_ends_lie_at_the_same_point():
    assert files_module.point(b"a,b\r\n") == files_module.point(b"a,b") != files_module.point(b"a,c")
    assert files_module.point(b"a,b") == pytest.approx(0.8562979650269031)  # the same in every process and release
