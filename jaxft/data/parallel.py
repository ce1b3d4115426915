"""Pairs of texts from two files that go line by line, as parallel corpora come: train.de.gz and train.en.gz."""

import itertools
import re
from array import array
from collections.abc import Iterator
from typing import Any

from jaxft.data import text_formats
from jaxft.data.files import read_given, split_of
from jaxft.data.opening import check_there, open_bytes, sha256, text
from jaxft.data.source import Dataset, Split, fingerprint
from jaxft.registry import BadRow, UserError

SIDES = ("source", "target")
NAMES = re.compile(r"(?P<before>[^{}]*)\{(?P<source>[^{},]+),(?P<target>[^{},]+)\}(?P<after>[^{}]*)")


def parallel(*, train: str, validation: str, test: str, holdout: float) -> Dataset:
    """Rows {"source": line, "target": line} of two text files that have as many lines, also gzipped.

    train, validation, test: both names in one, as a shell has them: "train.{de,en}.gz", the source first; "" = none.
    holdout: as of files. A line that is blank in both files is no row.
    Raises UserError for a file that is missing or empty, and for two that do not have as many lines.
    """
    given = {"train": train, "validation": validation, "test": test}
    return Dataset("parallel", read_given(given, holdout, _check, read_split), {})


def names(place: str, field: str) -> tuple[str, str]:
    """The two names that `place` stands for. Raises UserError where it does not stand for two."""
    parts = NAMES.fullmatch(place)
    if not parts:
        raise UserError(
            f"{field}={place!r} must name two files in one, the source's first: 'train.{{de,en}}.gz', or "
            "'{a/x.txt,b/y.txt}'; quote it, or the shell makes two of it"
        )
    source, target = (f"{parts['before']}{parts[side]}{parts['after']}" for side in SIDES)
    return source, target


def _check(place: str, field: str) -> None:
    for path in names(place, field):
        check_there(path, field)


def read_split(place: str, field: str = "file") -> Split:
    """The pairs of two files. `field` names the config key in errors."""
    paths = names(place, field)
    table = TwoFiles(*paths, field)
    return split_of(table, fingerprint(files=[sha256(path) for path in paths]), paths[0], field)


class TwoFiles:
    """A table (opening.py) whose spans are line numbers from 0."""

    def __init__(self, source: str, target: str, field: str):
        self._buffers = [text(open_bytes(path, field), path, field) for path in (source, target)]
        self._ends = [_ends(buffer) for buffer in self._buffers]
        counts = [len(ends) - 1 for ends in self._ends]
        if counts[0] != counts[1]:
            raise UserError(
                f"{field}: {source} has {counts[0]:,} lines and {target} has {counts[1]:,}; line by line they must be "
                "translations of each other: find where they part, and mend that"
            )

    def spans(self) -> Iterator[tuple[int, int, int]]:
        for line in range(len(self._ends[0]) - 1):
            if any(raw.strip() for raw in self._lines(line)):
                yield line, line + 1, line + 1

    def record(self, start: int, end: int) -> bytes:
        """Both lines, for hashing. Raises BadRow for one that is too long to be one."""
        lines = self._lines(start)
        for side, raw in zip(SIDES, lines, strict=True):
            if len(raw) > text_formats.LONGEST:
                raise BadRow(f"the {side} is {len(raw):,} bytes long; a line may have {text_formats.LONGEST:,}")
        return b"\t".join(raw.rstrip(b"\r\n") for raw in lines)

    def read(self, start: int, end: int) -> dict[str, Any]:
        """Raises BadRow for a line that is no text."""
        self.record(start, end)
        found = {}
        for side, raw in zip(SIDES, self._lines(start), strict=True):
            try:
                found[side] = text_formats.decode(raw)
            except BadRow as error:  # both have one place, that of the source
                raise BadRow(f"the {side}: {error}") from None
        return found

    def _lines(self, line: int) -> list[bytes]:
        return [buffer[ends[line] : ends[line + 1]] for buffer, ends in zip(self._buffers, self._ends, strict=True)]


def _ends(buffer: text_formats.Buffer) -> "array[int]":
    """Where the lines end, behind the place where the first begins."""
    begin = len(text_formats.BOM) if buffer[: len(text_formats.BOM)] == text_formats.BOM else 0
    return array("q", itertools.chain([begin], (end for _, end, _ in text_formats.lines(buffer, begin, 1))))
