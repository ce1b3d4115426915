"""Responses to prompts that share a row: a pair that is compared, or one and what tells its baseline."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft import reference
from jaxft.config import Config
from jaxft.data.pipeline import Batch, Share
from jaxft.data.source import Rows, Split
from jaxft.data.token_writer import LeftOut
from jaxft.inputs import chat, groups, text
from jaxft.inputs.base import Say
from jaxft.registry import BadRow
from jaxft.tasks import Example
from jaxft.tasks.preference import ANOTHER

placeholders = text.placeholders
beside = chat.beside
Key = tuple[bytes, bytes]  # a prompt and an answer, hashed


@dataclass(frozen=True)
class ResponseInputs(text.TextInputs):
    """`kinds`: split -> what each example is (tasks.preference), int32 [X].

    `reference`: split -> the logarithm of its probability before training, float32 [X]; empty where none is needed.
    """

    kinds: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]

    def before_training(self, run: Any) -> "ResponseInputs":
        if not self.task.needs_reference:
            return self
        return dataclasses.replace(self, reference=reference.of(run, self))

    def identity(self) -> dict[str, str]:
        told = {f"reference.{split}": reference.digest(array) for split, array in self.reference.items()}
        return super().identity() | told

    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        for batch in super().train_batches(config, start, share):
            yield self._with("train", batch)

    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        for one in super().eval_batches(split, batch, share):
            yield self._with(split, one)

    def _with(self, split: str, batch: Batch) -> Batch:
        """With kind, int32 [B, S], -1 of empty slots, and reference, float32 [B, S]."""
        batch = batch | {"kind": _slots(batch, self.kinds[split], -1)}
        if split not in self.reference:
            return batch
        return batch | {"reference": _slots(batch, self.reference[split], 0)}


def _slots(batch: Batch, value_X: np.ndarray, empty: int) -> np.ndarray:
    """The value of the example in each slot, [B, S]."""
    example_BS = batch["example"]
    return np.where(example_BS < 0, empty, value_X[example_BS]).astype(value_X.dtype)


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> ResponseInputs:
    """As chat.prepare. `input.length` is the most tokens of a prompt with a response, `input.pack` the most groups of
    them that share a row, which has room for the responses of one group."""
    data = chat.opened(config, cfg, folder, hf_folder, say)
    made, task, splits = data.format, data.format.task, data.dataset.splits
    splits = {name: _with_others(split, task) for name, split in splits.items()}
    dataset = dataclasses.replace(data.dataset, splits=splits)
    chat.warn_of_ends(lambda row: made.responses(row)[0], splits["train"], made, hf_folder, say)
    caches, plans = text.packed(
        config,
        dataset,
        lambda split: data.cache_of(split, made.responses, functools.partial(encode, made), config.input.on_bad),
        say,
        "tokens of responses",
        plans_of=groups.plans,
        pieces="responses",
    )
    kinds = {name: _kinds(task, splits[name], held) for name, held in caches.items()}
    length = groups.row_length(config.input.length, caches)
    return ResponseInputs(task, hf_folder, splits, caches, made.encoder, length, plans, kinds, {})


def blank(config: Config, cfg: Any, task: Any) -> Batch:
    """As groups.blank, with what ResponseInputs adds."""
    batch = groups.blank(config, cfg, task, tags=True)
    told = {"kind": np.zeros(task.compared, np.int32)}
    told |= {"reference": np.zeros(task.compared, np.float32)} if task.needs_reference else {}
    return batch | {name: _slots(batch, value_X, 0) for name, value_X in told.items()}


def encode(made: chat.Format, texts: Sequence[tuple[Any, str | None]]) -> list[Any]:
    """As Format.encode, of whole groups. Pairs whose responses are equal tokens prefer nothing: they are left out."""
    encoded: list[Any] = made.encode(texts)
    if made.task.label:  # no pairs
        return encoded
    group = 3 if made.task.objective == "kto" else 2
    for first in range(0, len(encoded), group):
        chosen, rejected = encoded[first : first + 2]
        if len(chosen.ids) and np.array_equal(chosen.ids, rejected.ids):
            cut = f" in the first {made.length}" if chosen.truncated or rejected.truncated else ""
            reason = f"the chosen and the rejected response have equal tokens{cut}"
            encoded[first] = LeftOut((), (), False, reason, bad=False)
    return encoded


def _kinds(task: Any, split: Split, held: Any) -> np.ndarray:
    """What each example of a cache is; all rows are alike unless a column tells."""
    first_G = held.begins[:-1]
    rows_G = held.row[first_G] if task.label else held.row[first_G[:1]]
    kinds_GP = np.array([[kind for _, kind in task.responses(split.rows[int(row)])] for row in rows_G], np.int32)
    return np.broadcast_to(kinds_GP, (len(first_G), kinds_GP.shape[1])).reshape(-1)


def _with_others(split: Split, task: Any) -> Split:
    """The split, of "kto" with an answer to another prompt in each row."""
    return dataclasses.replace(split, rows=WithAnother(split, task)) if task.objective == "kto" else split


class WithAnother(Rows):
    """The rows of a split, each with an answer to another prompt: that of the next row which has one."""

    def __init__(self, split: Split, task: Any):
        self._rows, self._task = split.rows, task

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        self._first(row)  # a bad row says what is wrong with itself
        other = self._following[index]
        if other is None:
            raise BadRow("no other row has another prompt, and so nothing tells the baseline of 'kto'")
        return {**row, ANOTHER: self._first(self._rows[other])[-1]}

    @functools.cached_property
    def _following(self) -> dict[int, int | None]:
        """Of each row that can be used the one whose answer it is given."""
        keys: dict[int, Key] = {}
        for index in range(len(self)):
            with contextlib.suppress(BadRow):
                *prompt, answer = self._first(self._rows[index])
                keys[index] = _digest(prompt), _digest(answer)
        found = following(list(keys.values()))
        rows = list(keys)
        return {row: None if at is None else rows[at] for row, at in zip(rows, found, strict=True)}

    def _first(self, row: Mapping[str, Any]) -> Sequence[Any]:
        return self._task.responses(row)[0][0]


def _digest(said: Any) -> bytes:
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).digest()


def following(keys: Sequence[Key]) -> list[int | None]:
    """For each key the next one, in a circle, of which both parts are others; None where there is none. One pass."""
    found: list[int | None] = [None] * len(keys)
    ahead: list[int] = []  # the next first
    for at in reversed(range(2 * len(keys))):
        one = at % len(keys)  # the first time round there is nothing but what is ahead of the second
        found[one] = next((other for other in ahead if _differ(keys[one], keys[other])), None)
        ahead = _needed([one, *ahead], keys)
    return found


def _differ(one: Key, other: Key) -> bool:
    return one[0] != other[0] and one[1] != other[1]


def _needed(ahead: list[int], keys: Sequence[Key]) -> list[int]:
    """Those of `ahead` that any key may find first.

    Of two keys with the same first part one differs in the second from any other key: a third is never found before
    them. A key then shares a part with four of those that are left at most, so it differs from the fifth.
    """
    kept: list[int] = []
    for one in ahead:
        seconds = {keys[other][1] for other in kept if keys[other][0] == keys[one][0]}
        firsts = {keys[other][0] for other in kept if keys[other][1] == keys[one][1]}
        if len(seconds) < 2 and len(firsts) < 2 and keys[one][1] not in seconds:
            kept.append(one)
    return kept[:5]


class Responses(NamedTuple):
    """Those of a row, as Reader holds them until their batch is made."""

    examples: list[Example]
    kinds: list[int]


class Reader(chat.Reader, groups.Reader):
    """As chat.Reader, of responses that share a row."""

    def encode(self, texts: list[tuple[Any, str | None]]) -> Sequence[Any]:
        return encode(self.format, texts)

    def split(self, split: Split) -> Split:
        return _with_others(split, self._task)

    def read(self, row: Mapping[str, Any]) -> Responses:
        made = self.format.responses(row)
        self.check(made)
        return Responses(made, [kind for _, kind in self._task.responses(row)])

    def batches(self, examples: Sequence[Responses], places: Sequence[str], rows: int) -> Iterator[Batch]:
        """As groups.Reader.batches, with `kind` [B, S]."""
        kind_X = np.concatenate([np.array(one.kinds, np.int32) for one in examples])
        for batch in super().batches([one.examples for one in examples], places, rows):
            yield batch | {"kind": _slots(batch, kind_X, -1)}
