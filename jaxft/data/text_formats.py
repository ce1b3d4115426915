"""Rows of jsonl, csv, tsv and txt files, as spans of a byte buffer: found once, parsed again on demand.

Every format answers two questions: where do the records lie (`spans`), and what does one say (`read`). So a file of
any size is read at random or from start to end with memory for one record. Blank lines are no records.
"""

import csv
import json
from collections.abc import Iterator
from typing import Any, Protocol

from jaxft.registry import BadRow, UserError

LONGEST = 16 * 2**20  # bytes: a longer record is a lost line end or a stray quote, not a row of text
BOM = b"\xef\xbb\xbf"
csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # process-wide, but only ever raised; the default is 131,072


class Buffer(Protocol):
    """bytes or a memory map."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int = ..., /) -> int: ...


def lines(buffer: Buffer, start: int, number: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, line number) of the physical lines from byte `start` on; `end` is past the line end."""
    size = len(buffer)
    while start < size:
        end = buffer.find(b"\n", start) + 1 or size
        yield start, end, number
        start, number = end, number + 1


def decode(raw: bytes) -> str:
    """The record as text, without its line end. Raises BadRow."""
    if b"\0" in raw:
        raise BadRow("holds a NUL byte")
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start + 1} of the row: {error.reason})") from error


class Txt:
    """One text a line: {"text": line}."""

    def __init__(self, name: str, buffer: Buffer):
        self.buffer = buffer
        self.body = (len(BOM) if buffer[: len(BOM)] == BOM else 0, 1)  # first byte and line number of the rows

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, line number) of every record."""
        for start, end, number in lines(self.buffer, *self.body):
            if not self.blank(start, end):
                yield start, end, number

    def blank(self, start: int, end: int) -> bool:
        return end - start <= 1024 and not self.buffer[start:end].strip(b" \r\n")

    def record(self, start: int, end: int) -> bytes:
        """The record as it stands in the file. Raises BadRow when it is too long to be one."""
        if end - start > LONGEST:
            raise BadRow(f"{end - start:,} bytes long; a row may have {LONGEST:,}")
        return self.buffer[start:end]

    def read(self, start: int, end: int) -> dict[str, Any]:
        """The row of a record. Raises BadRow."""
        return self.parse(decode(self.record(start, end)))

    def parse(self, text: str) -> dict[str, Any]:
        """The row that a record's text says. Raises BadRow."""
        return {"text": text}


class Jsonl(Txt):
    """One JSON object a line."""

    def parse(self, text: str) -> dict[str, Any]:
        try:
            row = json.loads(text)
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRow("holds half of a surrogate pair, which is no character") from error
        except json.JSONDecodeError as error:
            raise BadRow(f"not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 10,000 nested lists
            raise BadRow(f"not JSON that can be read ({error})") from error
        if not isinstance(row, dict):
            raise BadRow(f"a JSON {type(row).__name__}; every line must be an object, {{...}}")
        return row


class Tsv(Txt):
    """A header line, then fields split at tabs; no quoting and no escapes. All values are strings."""

    def __init__(self, name: str, buffer: Buffer):
        super().__init__(name, buffer)
        start, end, number = next(self.spans(), (0, 0, 1))
        try:
            self.columns = self.fields(decode(self.record(start, end)))
        except BadRow as error:
            raise UserError(f"{name}:{number}: the header is {error}; write column names there, in UTF-8") from error
        self.body = (end, number + 1)
        doubled = sorted({column for column in self.columns if self.columns.count(column) > 1})
        if doubled or "" in self.columns:
            fault = f"names column {doubled[0]!r} twice" if doubled and doubled[0] else "has a column without a name"
            raise UserError(f"{name}:{number}: the header {fault}; columns: {', '.join(map(repr, self.columns))}")

    def fields(self, text: str) -> list[str]:
        return text.split("\t")

    def parse(self, text: str) -> dict[str, Any]:
        values = self.fields(text)
        if len(values) != len(self.columns):
            raise BadRow(f"has {len(values)} fields; the header has {len(self.columns)}")
        return dict(zip(self.columns, values, strict=True))


class Csv(Tsv):
    """A header, then fields split at commas; a field in double quotes may hold commas, line ends and doubled quotes."""

    def fields(self, text: str) -> list[str]:
        if '"' not in text:
            return text.split(",")
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            fault = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise BadRow(f"not CSV ({fault})") from error

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """As Txt.spans, but a record goes on while a quote is open."""
        start, number = self.body
        while start < len(self.buffer):
            end, read = self._record(start, number)
            if not self.blank(start, end):
                yield start, end, number
            start, number = end, number + read

    def _record(self, start: int, number: int) -> tuple[int, int]:
        """(end, number of lines) of the record at `start`. A quote that is never closed spoils its own line only."""
        first, end, _ = next(lines(self.buffer, start, number))
        if end - start > LONGEST or b'"' not in self.buffer[first:end]:
            return end, 1
        ends = []

        def take() -> Iterator[str]:
            for line_start, line_end, _ in lines(self.buffer, start, number):
                if line_end - start > LONGEST:
                    return
                ends.append(line_end)
                yield self.buffer[line_start:line_end].decode("latin-1")  # quotes, commas, line ends are ASCII

        try:
            next(csv.reader(take(), strict=True))
        except csv.Error:
            return end, 1
        return ends[-1], len(ends)


FORMATS: dict[str, type[Txt]] = {"txt": Txt, "jsonl": Jsonl, "tsv": Tsv, "csv": Csv}
