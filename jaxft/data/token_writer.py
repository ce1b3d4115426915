"""Writes a token cache chunk by chunk: nothing but offsets, labels and row numbers stays in memory."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.source import Split
from jaxft.labels import NO_LABEL
from jaxft.registry import BadRow, UserError

REPORTED = 1000  # rows listed of those that are bad, or left out; all are counted
INT32 = range(-(2**31), 2**31)


class Chunk:
    """Examples on their way to the tokenizer."""

    def __init__(self):
        self.rows: list[int] = []
        self.texts: list[tuple[Any, str | None]] = []
        self.labels: list[Any] = []

    def append(self, row: int, examples: Sequence[Any]) -> None:
        """Adds what a row has become. Raises BadRow when a label is no finite number or list of such."""
        for label in (example.label for example in examples):
            for number in label if isinstance(label, list) else () if label is None else (label,):
                _check_number(number)
        for example in examples:
            self.rows.append(row)
            self.texts.append((example.text, example.pair))
            self.labels.append(example.label)


def _check_number(value: Any) -> None:
    if not isinstance(value, (int, float)):
        raise BadRow(f"label {value!r} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"label {value} is not finite")
    if isinstance(value, int) and value not in INT32:
        raise BadRow(f"label {value} does not fit into 32 bits")


def flatten(encoded: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """All ids and all token types of (ids, types, truncated) triples, int64 [tokens] each."""
    none = np.zeros(0, np.int64)
    ids = np.concatenate([none, *(one[0] for one in encoded if len(one[0]))])
    types = np.concatenate([none, *(one[1] for one in encoded if len(one[1]))])
    return ids, types


def label_array(labels: list[Any], where: str) -> np.ndarray:
    """int32 or float32 [X], float32 [X, C]; -100 for examples without labels. `where` is for the message."""
    if all(label is None for label in labels):
        return np.full(len(labels), NO_LABEL, np.int32)
    try:
        if None in labels:  # numpy would make it a NaN
            raise ValueError
        array = np.array(labels, np.float64)
    except (TypeError, ValueError) as error:  # numbers among lists, lists of several lengths
        raise UserError(
            f"from {where} on, some labels are numbers and others are lists of another length or absent; "
            f"all rows of a split need the same kind of label"
        ) from error
    whole = array.ndim == 1 and all(isinstance(label, int) for label in labels)
    return array.astype(np.int32 if whole else np.float32)


def labels_of(labels: list[Any], encoded: Sequence[Any], where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(labels, tags) of a TokenCache, tags None where the labels are not of tokens."""
    if not encoded or not hasattr(encoded[0], "tags"):
        return label_array(labels, where), None
    tagged = [one.tags(label) for one, label in zip(encoded, labels, strict=True)]
    return np.array([lost for _, lost in tagged], np.int32), np.concatenate([tag_T for tag_T, _ in tagged])


def spread(chunk: Chunk, encoded: Sequence[Any]) -> tuple[Chunk, Sequence[Any], Counter[str]]:
    """Examples that were read in several pieces, each of them now an example of the same row; and what was counted.

    `encoded` of such an example is an object with `pieces` and `counts(label)`.
    """
    counts: Counter[str] = Counter()
    if not encoded or not hasattr(encoded[0], "pieces"):
        return chunk, encoded, counts
    parted = Chunk()
    for row, text, label, one in zip(chunk.rows, chunk.texts, chunk.labels, encoded, strict=True):
        parted.rows += [row] * len(one.pieces)
        parted.texts += [text] * len(one.pieces)
        parted.labels += [label] * len(one.pieces)
        counts.update(one.counts(label))
    return parted, [piece for one in encoded for piece in one.pieces], counts


class LeftOut(NamedTuple):
    """What an encoder gives for an example that is not to be used: why, and whether this makes its row a bad one."""

    ids: tuple[()]
    types: tuple[()]
    truncated: bool
    reason: str
    bad: bool


class TokenWriter:
    """A context: `add` chunks in order, then `finish`.

    Writes ids.bin, types.bin, offsets.npy, labels.npy, row.npy, report.json, bad_rows.json and dropped_rows.json into
    `folder`, tags.bin where the labels are of tokens, and chars.bin where it is known which characters these are.
    """

    def __init__(self, folder: Path, split: Split):
        self._folder = folder
        self._split = split
        self._ids = open(folder / "ids.uint32", "wb")  # noqa: SIM115 - closed on leaving
        self._types = open(folder / "types.bin", "wb")  # noqa: SIM115
        self._tags: Any = None
        self._chars: Any = None
        self._lengths: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._max_id = self._max_type = 0
        self._bad = list(split.bad[:REPORTED])
        self._counts = {"rows": len(split.rows) + len(split.bad), "kept": 0, "bad": len(split.bad)}
        self._counts |= {"dropped": 0, "truncated": 0, "empty": 0, "lost": 0}
        self._counted: Counter[str] = Counter()
        self._dropped: list[tuple[str, str]] = []

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.close()
        self._types.close()
        for file in (self._tags, self._chars):
            if file:
                file.close()

    def reject(self, where: str, reason: str) -> None:
        """Counts a bad row."""
        self._counts["bad"] += 1
        if len(self._bad) < REPORTED:
            self._bad.append((where, reason))

    def _leave_out(self, where: str, encoded: Any) -> None:
        if not isinstance(encoded, LeftOut):
            self.reject(where, "has no tokens")
        elif encoded.bad:
            self.reject(where, encoded.reason)
        else:
            self._counts["dropped"] += 1
            self._dropped += [(where, encoded.reason)] * (len(self._dropped) < REPORTED)

    def add(self, chunk: Chunk, encoded: Sequence[Any]) -> None:
        """Raises UserError for an id or type that no tokenizer has, or for labels of another kind than those before."""
        chunk, encoded, counts = spread(chunk, encoded)
        self._counted.update(counts)
        lengths = np.fromiter((len(one[0]) for one in encoded), np.int64, len(encoded))
        kept = range(len(chunk.rows))
        if not lengths.all():
            empty: dict[int, int] = {}
            for index in np.flatnonzero(lengths == 0).tolist():
                empty.setdefault(chunk.rows[index], index)
            for row, index in empty.items():
                self._leave_out(self._split.where(row), encoded[index])
            kept = [i for i, row in enumerate(chunk.rows) if row not in empty]  # a group stays whole or goes
            encoded, lengths = [encoded[i] for i in kept], lengths[kept]
        ids, types = flatten(encoded)
        self._max_id = max(self._max_id, int(ids.max(initial=0)))
        self._max_type = max(self._max_type, int(types.max(initial=0)))
        if ids.min(initial=0) < 0 or self._max_type > 255:
            token = int(np.argmax((ids < 0) | (types > 255)))
            row = chunk.rows[kept[int(np.searchsorted(np.cumsum(lengths), token, side="right"))]]
            what = f"a token of id {ids[token]} and type {types[token]}"
            raise UserError(f"{self._split.where(row)} has {what}; the tokenizer is broken")
        self._ids.write(ids.astype(np.uint32).data)
        self._types.write(types.astype(np.uint8).data)
        self._lengths.append(lengths)
        self._rows.append(np.array([chunk.rows[i] for i in kept], np.int64))
        self._add_labels([chunk.labels[i] for i in kept], encoded, self._split.where(chunk.rows[0]))
        self._counts["kept"] += len({chunk.rows[i] for i in kept})
        self._counts["truncated"] += sum(one[2] for one in encoded)
        self._counts["empty"] += sum(_is_empty(chunk.texts[i][0]) for i in kept)

    def _add_labels(self, labels: list[Any], encoded: Sequence[Any], where: str) -> None:
        array, tags = labels_of(labels, encoded, where)
        self._labels.append(array)
        if tags is not None:
            self._tags = self._tags or open(self._folder / "tags.bin", "wb")  # noqa: SIM115 - closed on leaving
            self._tags.write(tags.data)
            self._counts["lost"] += int(array.sum())
        if encoded and hasattr(encoded[0], "chars"):
            self._chars = self._chars or open(self._folder / "chars.bin", "wb")  # noqa: SIM115 - closed on leaving
            self._chars.write(np.concatenate([one.chars for one in encoded]).data)

    def finish(self) -> None:
        """Writes what was gathered."""
        for file in (self._ids, self._types, self._tags, self._chars):
            if file:
                file.close()
        dtype = np.uint16 if self._max_id < 2**16 else np.uint32
        _convert(self._folder / "ids.uint32", self._folder / "ids.bin", dtype)
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        np.save(self._folder / "offsets.npy", np.cumsum(lengths))
        np.save(self._folder / "row.npy", np.concatenate([np.zeros(0, np.int64), *self._rows]))
        np.save(self._folder / "labels.npy", self._joined_labels())
        report = {
            "counts": self._counts | self._counted,
            "max_id": self._max_id,
            "max_type": self._max_type,
            "id_dtype": np.dtype(dtype).name,
        }
        (self._folder / "report.json").write_text(json.dumps(report, indent=1))
        for name, rows in (("bad_rows.json", self._bad), ("dropped_rows.json", self._dropped)):
            (self._folder / name).write_text(json.dumps(rows, indent=1, ensure_ascii=False))

    def _joined_labels(self) -> np.ndarray:
        shapes = {array.shape[1:] for array in self._labels}
        if len(shapes) > 1:
            raise UserError(f"labels of several shapes {sorted(shapes)} in one split; all rows need the same")
        if not self._labels:
            return np.zeros(0, np.int32)
        # Whole numbers in one chunk, fractions in another: then all are values. Exact, since float32 comes from both.
        dtype = np.float32 if any(array.dtype == np.float32 for array in self._labels) else np.int32
        return np.concatenate([array.astype(dtype) for array in self._labels])


def _is_empty(text: Any) -> bool:
    """Whether a text, or a list of words, has nothing but white space; token ids are never empty here."""
    return not isinstance(text, np.ndarray) and not "".join(text).strip()


def _convert(source: Path, target: Path, dtype: type) -> None:
    """Copies a file of uint32 as `dtype`, a block at a time: which one fits is known only after the last id."""
    with open(source, "rb") as read, open(target, "wb") as write:
        while block := read.read(2**22):
            write.write(np.frombuffer(block, np.uint32).astype(dtype).data)
    source.unlink()
