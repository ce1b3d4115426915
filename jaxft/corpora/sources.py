"""Where documents come from: records one after the other, each with its place. Nothing is parsed here.

A source is read by one process from start to end, and in the same order every time; workers parse (`text_of`). Files
are streams: of one that is packed nothing but what is being read is ever unpacked.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxft import remote
from jaxft.data import DATASETS, opening, packed
from jaxft.data.source import plain
from jaxft.data.text_formats import BOM, LONGEST, Jsonl, decode
from jaxft.registry import BadRow, UserError, call

FORMATS = ("jsonl", "parquet", "txt")
UNITS = ("line", "paragraph", "file")


class Record(NamedTuple):
    """file: its number in the source; line: counted from 1, of a parquet file or a data set the row.

    raw: bytes as they stand in a text file; or a row; or why there is none.
    """

    file: int
    line: int
    raw: bytes | dict[str, Any] | BadRow


class Files:
    """Files of text, by the ending of their names: .jsonl, .parquet or .txt, the text files also with .gz or .zst.

    paths: names, or patterns with *, ? and ** ; files are read in this order, those of a pattern in the order of their
        names. unit: what is a document in a .txt file: "line", "paragraph" (up to an empty line) or "file".
    Raises UserError for a name that is no file, a pattern that finds none, an ending that is not known.
    """

    def __init__(self, *, paths: Sequence[str], unit: str):
        if unit not in UNITS:
            raise UserError(f"source.unit={unit!r} must be one of: {', '.join(UNITS)}")
        self.unit = unit
        self.names = _found(paths)
        for name in self.names:
            if _ending(name) not in FORMATS:
                raise UserError(
                    f"source.paths: {name} must end in one of .{', .'.join(FORMATS)}, the text files also in .gz or "
                    ".zst; other files of rows are read by --config.source=\"{'name': 'dataset', ...}\""
                )
            opening.check_there(name, "source.paths")

    def identity(self) -> dict[str, str]:
        """Name -> hash of the content."""
        return {name: opening.sha256(name) for name in self.names}

    def sizes(self) -> list[int]:
        """Bytes of each file on the disk."""
        return [os.path.getsize(name) for name in self.names]

    def records(self, column: str) -> Iterator[Record]:
        for number in range(len(self.names)):
            yield from self.records_of(number, column)

    def records_of(self, number: int, column: str) -> Iterator[Record]:
        """The records of one file. What cannot be read any more is one record, a BadRow."""
        name = self.names[number]
        if _ending(name) == "parquet":
            yield from _parquet(name, number, column)
            return
        line = 0
        with open(name, "rb") as file, packed.unpacked(file, name) as stream:
            try:
                for line, raw in _UNITS[self.unit if _ending(name) == "txt" else "line"](stream):
                    yield Record(number, line, raw)
            except packed.Damaged as error:
                yield Record(number, line + 1, BadRow(f"the rest of the file cannot be unpacked ({error})"))

    def format(self, number: int) -> str:
        return _ending(self.names[number])


class Rows:
    """The rows of a data set of jaxft: `data` is a section as in a config of a run, `split` one of its splits."""

    def __init__(self, *, data: dict, split: str):
        dataset = call(DATASETS, data, "source.data")
        if split not in dataset.splits:
            raise UserError(f"source.split={split!r} is none of the data set's: {', '.join(dataset.splits)}")
        self._split = dataset.splits[split]
        self.names = [f"{dataset.name} {split}"]

    def identity(self) -> dict[str, str]:
        return {self.names[0]: self._split.fingerprint}

    def records(self, column: str) -> Iterator[Record]:
        for place, reason in self._split.bad:
            line = place.rpartition(":")[2]
            yield Record(0, int(line) if line.isdigit() else 0, BadRow(reason))
        for index in range(len(self._split.rows)):
            try:
                row = self._split.rows[index]
            except BadRow as error:
                yield Record(0, index + 1, error)
            else:
                yield Record(0, index + 1, {column: row[column]} if column in row else {})

    def format(self, number: int) -> str:
        return "row"


def text_of(raw: bytes | dict[str, Any] | BadRow, kind: str, column: str) -> str:
    """The text of a record of a file of format `kind`. Raises BadRow."""
    if isinstance(raw, BadRow):
        raise raw
    if isinstance(raw, bytes):
        if len(raw) > LONGEST:
            raise BadRow(f"longer than {LONGEST:,} bytes")
        if kind == "txt":
            return decode(raw)
        raw = _JSONL.parse(decode(raw))
    if column not in raw:
        raise BadRow(f"no column {column!r}")
    text = plain(raw[column])
    if not isinstance(text, str):
        raise BadRow(f"{column!r} is {'empty' if text is None else f'a {type(text).__name__}, not text'}")
    return text


_JSONL = Jsonl("", b"")


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(packed.ending(name))).suffix[1:]


def _found(paths: Sequence[str]) -> list[str]:
    names: list[str] = []
    for path in paths:
        if remote.is_remote(path):
            raise UserError(f"source.paths: {path!r} is a URL, and corpora are made from local files; mount or copy it")
        matching = sorted(filter(os.path.isfile, glob.glob(path, recursive=True))) if glob.has_magic(path) else [path]
        if not matching:
            raise UserError(f"source.paths: no file matches {path!r}")
        names += matching
    if not names:
        raise UserError("source.paths is empty; name files, such as --config.source.paths=\"('corpus/*.jsonl.gz',)\"")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"source.paths: {twice[0]} is named twice")
    return names


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, line); of one that is too long no more than shows that it is. Without blank lines."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        whole = line.endswith(b"\n")
        if line.strip(b" \t\r\n"):
            yield number, line
        while not whole and (rest := stream.readline(LONGEST)):
            whole = rest.endswith(b"\n")


def _paragraphs(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, lines up to an empty one)."""
    first, expected, held, size = 0, 0, [], 0
    for number, line in _lines(stream):
        if held and number != expected:  # _lines left blank ones out
            yield first, b"".join(held)
            held, size = [], 0
        if not held:
            first = number
        if size <= LONGEST:
            held.append(line)
            size += len(line)
        expected = number + 1
    if held:
        yield first, b"".join(held)


def _whole(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    content = stream.read(LONGEST + 1).removeprefix(BOM)
    if content.strip():
        yield 1, content
    while stream.read(2**20):  # to the end, where damage shows
        pass


_UNITS = {"line": _lines, "paragraph": _paragraphs, "file": _whole}


def _parquet(name: str, number: int, column: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(name) as file:
            columns = [column] if column in file.schema_arrow.names else []
            if not columns:
                known = ", ".join(file.schema_arrow.names)
                yield Record(
                    number,
                    1,
                    BadRow(f"none of the {file.metadata.num_rows:,} rows has a column {column!r}; columns: {known}"),
                )
                return
            for batch in file.iter_batches(1024, columns=columns):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield Record(number, row, {column: value})
    except (pyarrow.ArrowException, OSError) as error:
        yield Record(number, row + 1, BadRow(f"the rest of the file cannot be read ({error})"))


def chunks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Records in a row of about `size` bytes together, the same whoever reads them."""
    held: list[Record] = []
    held_bytes = 0
    for record in records:
        held.append(record)
        held_bytes += nbytes(record)
        if held_bytes >= size:
            yield held
            held, held_bytes = [], 0
    if held:
        yield held


def nbytes(record: Record) -> int:
    """Bytes of a record, and what it costs to carry one."""
    raw = record.raw
    if isinstance(raw, bytes):
        return len(raw) + 64
    if isinstance(raw, dict):
        return sum(len(value) for value in raw.values() if isinstance(value, (str, bytes))) + 64
    return 64
