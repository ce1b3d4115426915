"""Tokens of the documents that stay, as shards that the data set `prepared` reads."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft import disk
from jaxft.data.prepared import ENDING, OPTIONS, Shard, pack
from jaxft.registry import UserError

TRAIN = "train"
BATCH = 256  # documents handed to the tokenizer at once


class Ready(NamedTuple):
    """A document that stays, and the split that it belongs to."""

    split: str
    file: int
    line: int
    text: str


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises UserError unless the shares of the splits leave something to train on."""
    numbers = all(type(share) in (int, float) for share in shares.values())
    if not numbers or any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise UserError(f"split: {dict(shares)} must be shares of 0 or more whose sum is below 1; the rest is train")


def splits_of(digests_X2: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The split of each document, [X] of names, by its text alone: the same in any company.

    digests: uint64 [X, 2]. shares: split -> share; the rest is train.
    """
    names, limits = [*shares, TRAIN], np.cumsum(list(shares.values()))
    at_X = digests_X2[:, 0].astype(np.float64) / 2**64
    return np.array(names)[np.searchsorted(limits, at_X, side="right")]


def dtype_of(vocab: int) -> str:
    """The smallest type of numbers that holds all token ids below `vocab`."""
    return "<u2" if vocab <= 2**16 else "<u4"


def write(
    documents: Iterator[Ready], encoder: Any, folder: Path, aside: Path, number: int, splits: Sequence[str], dtype: str
) -> dict[str, Shard]:
    """Writes shard `number` of each split that has any of `documents`; returns what was written, by split.

    A file is written in the folder `aside`, and moves when it is complete.
    """
    writers: dict[str, _Writer] = {}
    try:
        for batch in _batches(documents):
            for one, encoded in zip(batch, encoder.encode_documents([(one.text, None) for one in batch]), strict=True):
                if one.split not in writers:
                    writers[one.split] = _Writer(folder, aside, f"{one.split}-{number:05d}{ENDING}", dtype)
                writers[one.split].add(encoded.ids, one)
        return {split: writers[split].finish() for split in splits if split in writers}
    finally:
        for writer in writers.values():
            writer.close()


def _batches(documents: Iterator[Ready]) -> Iterator[list[Ready]]:
    held = []
    for one in documents:
        held.append(one)
        if len(held) == BATCH:
            yield held
            held = []
    if held:
        yield held


class _Writer:
    """One array_record file."""

    def __init__(self, folder: Path, aside: Path, name: str, dtype: str):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path, self._aside, self._dtype = folder / name, aside / f"{name}.{os.getpid()}.tmp", dtype
        with disk.writing(self._path):
            self._writer: Any = ArrayRecordWriter(str(self._aside), OPTIONS)
        self._documents = self._tokens = self._bytes = 0

    def add(self, ids: np.ndarray, one: Ready) -> None:
        size = len(one.text.encode())
        with disk.writing(self._path):
            self._writer.write(pack(ids, size, one.file, one.line, self._dtype))
        self._documents += 1
        self._tokens += len(ids)
        self._bytes += size

    def finish(self) -> Shard:
        with disk.writing(self._path):
            self._writer.close()
            self._writer = None
            with open(self._aside, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            os.replace(self._aside, self._path)
        size = self._path.stat().st_size
        return Shard(self._path.name, digest, size, self._documents, self._tokens, self._bytes)

    def close(self) -> None:
        """Gives up what is not finished."""
        if self._writer is not None:
            self._writer.close()
            self._aside.unlink(missing_ok=True)
