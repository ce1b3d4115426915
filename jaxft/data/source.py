"""What every data set of the registry returns: named splits of rows with random access.

A row is a mapping of plain Python values (str, int, float, bool, None, list, dict); bytes are decoded already. Images
are the name of a file, the bytes of one, or uint8 arrays [rows, columns(, channels)].
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from jaxft.registry import BadRow, UserError

SHOWN = 5  # bad rows quoted in a message


class Rows(Sequence[Mapping[str, Any]]):
    """Rows that are read when they are asked for. Whoever inherits has `__len__` and `row`."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """Row 0 <= index < len. Raises BadRow."""

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.row(index % len(self))


@dataclass(frozen=True)
class Split:
    """One split.

    rows: `len(rows)`, `rows[i]`; reading one may raise BadRow.
    fingerprint: identity of the content; it changes when any row may have changed.
    where: place of row i for messages, such as "train.jsonl:17" (lines count from 1).
    bad: (where, reason) of the rows that could not even be read; they have no index.
    """

    rows: Sequence[Mapping[str, Any]]
    fingerprint: str
    where: Callable[[int], str]
    bad: Sequence[tuple[str, str]] = ()

    @property
    def place(self) -> str:
        """Where the split begins: equal content may lie in two places."""
        return self.bad[0][0] if self.bad else self.where(0)


@dataclass(frozen=True)
class Dataset:
    """`splits`: the splits asked for. `label_names`: column -> class names, where the source knows them.

    tokenizer: folder of the one that made the tokens, where the rows are tokens already.
    """

    name: str
    splits: dict[str, Split]
    label_names: dict[str, tuple[str, ...]]
    tokenizer: Path | None = None


def fingerprint(**facts: Any) -> str:
    """A short hash of JSON-able facts, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def quoted(bad: Sequence[tuple[str, str]]) -> str:
    """The first of (where, reason), a line each, for a message."""
    return "\n".join(f"  {where}: {reason}" for where, reason in bad[:SHOWN])


def refuse_bad(counts: Mapping[str, int], bad: Sequence[tuple[str, str]], folder: Path, on_bad: str) -> None:
    """Raises UserError for rows that cannot be used, unless told to skip them, and for a split without any other.

    `counts` has rows, kept and bad; `bad` the first of (where, reason), which stand in bad_rows.json of `folder`.
    """
    if counts["bad"] and on_bad == "stop":
        raise UserError(
            f"{counts['bad']:,} of {counts['rows']:,} rows cannot be used:\n{quoted(bad)}\n"
            f"mend them, or leave them out with --config.input.on_bad=skip (listed in {folder / 'bad_rows.json'})"
        )
    if not counts["kept"]:
        raise UserError(f"none of the {counts['rows']:,} rows can be used:\n{quoted(bad)}\nmend them")


def plain(value: Any) -> Any:
    """A value of a columnar format as plain Python; bytes as UTF-8 text. Raises BadRow for bytes that are not UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRow(f"not UTF-8 (byte {error.start}: {error.reason})") from error
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)  # dates, decimals
