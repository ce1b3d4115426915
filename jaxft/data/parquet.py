"""Rows of a parquet file, a block at a time."""

import json
import mmap
from collections.abc import Iterator
from typing import Any

from jaxft.data.source import plain
from jaxft.registry import UserError

BLOCK = 1024  # rows turned into Python values at once


class Parquet:
    """A table (opening.py) whose spans are row numbers; the message counts rows from 1."""

    def __init__(self, name: str, buffer: mmap.mmap):
        import pyarrow
        from pyarrow import parquet

        try:
            self._file = parquet.ParquetFile(pyarrow.BufferReader(pyarrow.py_buffer(buffer)))
        except pyarrow.ArrowException as error:
            raise UserError(f"{name} is not a parquet file ({error})") from error
        metadata = self._file.metadata
        self._group_ends, end = [], 0
        for group in range(metadata.num_row_groups):
            end += metadata.row_group(group).num_rows
            self._group_ends.append(end)
        self._group, self._arrow = -1, None
        self._block_start, self._block = 0, []

    def spans(self) -> Iterator[tuple[int, int, int]]:
        return ((row, row + 1, row + 1) for row in range(self._file.metadata.num_rows))

    def record(self, start: int, end: int) -> bytes:
        """The row as canonical JSON, for hashing."""
        return json.dumps(self.read(start, end), sort_keys=True).encode()

    def read(self, start: int, end: int) -> dict[str, Any]:
        """Row `start`. Raises BadRow for binary values that are not UTF-8."""
        if not self._block_start <= start < self._block_start + len(self._block):
            self._load(start)
        return plain(self._block[start - self._block_start])

    def _load(self, row: int) -> None:
        group = next(g for g, end in enumerate(self._group_ends) if row < end)
        first = self._group_ends[group - 1] if group else 0
        if group != self._group:
            self._group, self._arrow = group, self._file.read_row_group(group)
        assert self._arrow is not None
        self._block_start = first + (row - first) // BLOCK * BLOCK
        self._block = self._arrow.slice(self._block_start - first, BLOCK).to_pylist()
