"""A user's own files: jsonl, csv, tsv, txt, parquet, CoNLL, SQuAD; also gzipped. Large files are mapped, never held."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.data.opening import Table, check, open_table, sha256, where
from jaxft.data.source import Dataset, Rows, Split, fingerprint, quoted
from jaxft.registry import BadRow, UserError


def files(*, train: str, validation: str, test: str, holdout: float) -> Dataset:
    """Splits read from files, by the ending of their names (opening.ENDINGS, or any of these with .gz).

    jsonl: one object a line. csv, tsv: a header line; all values are strings; tsv has no quoting. txt: one row
    {"text": line} a line. Blank lines are skipped. conll (bio, iob, iob2), conllu: a sentence a row (sentences.py).
    json: a question a row (questions.py).

    train, validation, test: paths; "" = no such split.
    holdout: share of the train rows, 0 <= holdout < 1, held out as validation where `validation` is "". Chosen by a
        hash of the row's content: equal rows stay together, and a row stays where it is when others come or go.
    Raises UserError for a file that is missing, empty, of an unknown format, with a bad header or without a row that
    can be read. Single rows that cannot are listed in `Split.bad`.
    """
    given = {"train": train, "validation": validation, "test": test}
    return Dataset("files", read_given(given, holdout, check, read_split), {})


def read_given(
    given: Mapping[str, str],
    holdout: float,
    check: Callable[[str, str], object],
    read: Callable[[str, str], Split],
) -> dict[str, Split]:
    """The splits of the places `given` ("": none), and a validation split held out of train where that is wanted.

    check(place, name of the config key) raises UserError for one that is not there, at once; read(...) reads it.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"data.holdout={holdout} must be at least 0 and less than 1")
    if not any(given.values()):
        raise UserError("data.train, data.validation and data.test are all empty; set data.train to a file")
    for split, place in given.items():
        if place:
            check(place, f"data.{split}")  # all of them, before the first is read: that may take minutes
    splits = {split: read(place, f"data.{split}") for split, place in given.items() if place}
    if holdout and not given["validation"] and "train" in splits:
        splits |= hold_out(splits["train"], holdout)
    return splits


def read_split(path: str, field: str = "file") -> Split:
    """The rows of one file. `field` names the config key in errors."""
    return split_of(open_table(path, field), sha256(path), path, field)


def split_of(table: Table, identity: str, path: str, field: str) -> Split:
    """The rows of a table that was read at `path`. Raises UserError where there is none."""
    starts, ends, numbers, bad = array("q"), array("q"), array("q"), []
    for start, end, number in table.spans():
        try:
            table.read(start, end)
        except BadRow as error:
            bad.append((where(table, path, number), str(error)))
        else:
            starts.append(start)
            ends.append(end)
            numbers.append(number)
    if not starts and not bad:
        raise UserError(f"{field}={path!r} has no rows; give a file with at least one")
    if not starts:
        raise UserError(
            f"{field}={path!r}: none of its {len(bad):,} rows can be read:\n{quoted(bad)}\n"
            "mend them, or give the file the ending of its format"
        )
    spans = np.stack([np.frombuffer(column, np.int64) for column in (starts, ends, numbers)])
    return _split(TableRows(table, spans), identity, path, bad)


def hold_out(train: Split, share: float) -> dict[str, Split]:
    """train and validation made of `train`. The unreadable rows stay with train."""
    rows = train.rows
    assert isinstance(rows, TableRows)
    held = np.fromiter((point(raw) < share for raw in rows.raw()), bool, len(rows))
    if held.all() or not held.any():
        unread = f"; {len(train.bad):,} other rows cannot be read:\n{quoted(train.bad)}" if train.bad else ""
        raise UserError(
            f"data.holdout={share} of {len(rows):,} rows leaves {'train' if held.all() else 'validation'} without one; "
            f"name a file as data.validation, or hold out another share{unread}"
        )
    parts = {
        "train": TableRows(rows.table, rows.spans[:, ~held]),
        "validation": TableRows(rows.table, rows.spans[:, held]),
    }
    path = train.where(0).rpartition(":")[0]
    identity = {name: fingerprint(file=train.fingerprint, holdout=share, side=name) for name in parts}
    return {
        name: _split(part, identity[name], path, train.bad if name == "train" else ()) for name, part in parts.items()
    }


def point(raw: bytes) -> float:
    """A place in [0, 1) that depends on the content of a record alone, not on its line end."""
    digest = hashlib.blake2b(raw.rstrip(b"\r\n"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_rows(path: str, field: str = "input") -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(where, row or BadRow) of a file of any size, in order, holding one row at a time."""
    table = open_table(path, field)
    for start, end, number in table.spans():
        try:
            yield where(table, path, number), table.read(start, end)
        except BadRow as error:
            yield where(table, path, number), error


class TableRows(Rows):
    """Rows of a table by their [3, X] spans: first byte, end, line number. A row is parsed when it is asked for."""

    def __init__(self, table: Table, spans: np.ndarray):
        self.table = table
        self.spans = spans

    def __len__(self) -> int:
        return self.spans.shape[1]

    def row(self, index: int) -> dict[str, Any]:
        start, end, _ = self.spans[:, index].tolist()
        return self.table.read(start, end)

    def raw(self) -> Iterator[bytes]:
        """The records as they stand in the file."""
        for start, end, _ in self.spans.T.tolist():
            yield self.table.record(start, end)


def _split(rows: TableRows, identity: str, path: str, bad: Sequence[tuple[str, str]]) -> Split:
    return Split(rows, identity, lambda i: where(rows.table, path, rows.spans[2, i]), bad)
