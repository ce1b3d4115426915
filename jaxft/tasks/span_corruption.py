"""Span corruption (Raffel et al. 2020, section 3.1.4): what stood where spans of a text were taken out."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxft.labels import NO_LABEL
from jaxft.registry import UserError
from jaxft.tasks.corpus import CorpusTask

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(CorpusTask):
    """rate: share of the tokens that are taken out, in spans of `span` tokens on average, drawn anew for every batch.

    Of each document in a row the source has a sentinel for each span, the target each sentinel and what stood there,
    then an end-of-text token.
    """

    rate: float
    span: float

    head: ClassVar[str] = "seq2seq_lm"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise UserError(f"task.rate={self.rate} must be above 0 and below 1; 0.15 is T5's")
        if self.span < 1:
            raise UserError(f"task.span={self.span} tokens must be 1 or more; 3 is T5's")

    @property
    def read(self) -> float:
        """Tokens of the target for each of the text."""
        return self.rate * (1 + 1 / self.span)

    def counts(self, length: Any) -> tuple[Any, Any]:
        """(tokens that are taken out, spans) of texts of `length` tokens; of a single token none."""
        taken = np.where(np.asarray(length) > 1, np.clip(np.rint(self.rate * length), 1, np.maximum(length - 1, 1)), 0)
        spans = np.clip(np.rint(taken / self.span), 1, np.maximum(np.minimum(taken, length - taken), 1))
        return taken.astype(np.int64), np.where(taken > 0, spans, 0).astype(np.int64)

    def _target_length(self, length: Any) -> Any:
        taken, spans = self.counts(length)
        return taken + spans + (taken > 0)

    def change(self, vocabulary: Any, cfg: Any, pieces: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Any:
        """Takes spans out of a batch; `pieces` gives (row, tokens) of all pieces of documents there are.

        Source and target stand in rows of their own: ids, segment and position are shorter than they were, of a row
        whose end is padding; target_ids (what the decoder reads: begun by cfg.start_id), target_segment,
        target_position, label and weight are [B, T]. T is what the fullest row needs.
        """
        end, sentinels = vocabulary.end_id, vocabulary.sentinels
        if end is None or not sentinels:
            raise UserError(
                "task.name='span_corruption', but the tokenizer has no sentinels <extra_id_0>, ... or no eos_token; "
                "use that of a T5, or tokenizer.name='sentinels' for random weights"
            )
        row_J, length_J = pieces()
        _, spans_J = self.counts(length_J)
        need_J = np.maximum(*(self._target_length(length_J - closing) for closing in (0, 1)))  # with and without `end`
        if (most := int(spans_J.max())) > len(sentinels):
            raise UserError(
                f"input.length: a text of {length_J.max()} tokens loses {most} spans, and the tokenizer has "
                f"{len(sentinels)} sentinels; set input.length or task.rate lower, or task.span higher"
            )
        room = int(np.bincount(row_J, weights=need_J).max())
        return functools.partial(self._corrupt, room=room, start=cfg.start_id, end=end, sentinels=sentinels)

    def _corrupt(
        self, batch: Batch, draws: Any, *, room: int, start: int, end: int, sentinels: tuple[int, ...]
    ) -> Batch:
        B, L = batch["ids"].shape
        source = {name: np.zeros((B, L), np.int32) for name in ("ids", "segment", "position")}
        target = {name: np.zeros((B, room), np.int32) for name in ("target_ids", "target_segment", "target_position")}
        label_BT = np.full((B, room), NO_LABEL, np.int32)
        for row in range(B):
            used, written, rng = 0, 0, draws.of_row(row)
            for slot in range(1, batch["segment"][row].max(initial=0) + 1):
                text = batch["ids"][row][batch["segment"][row] == slot]
                kept, answer = self._split(text, end, sentinels, rng)
                _fill(source, row, used, slot, kept)
                used += len(kept)
                if len(answer):
                    _fill(target, row, written, slot, np.concatenate([[start], answer[:-1]]), "target_")
                    label_BT[row, written : written + len(answer)] = answer
                    written += len(answer)
        weight_BT = (label_BT != NO_LABEL).astype(np.float32)
        still = {"type": np.zeros((B, L), np.int32), "bytes": batch["bytes"], "example": batch["example"]}
        return {**source, **target, **still, "label": label_BT, "weight": weight_BT}

    def _split(
        self, text: np.ndarray, end: int, sentinels: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(source, target) of a text, whose end-of-text token stays; the target of a single token is empty."""
        closing = text[len(text) - 1 :] if text[-1] == end else text[:0]
        body = text[: len(text) - len(closing)]
        taken, spans = (int(count) for count in self.counts(len(body)))
        if not taken:
            return text, text[:0]
        lengths = np.stack([_parts(len(body) - taken, spans, rng), _parts(taken, spans, rng)], axis=1)
        pieces = np.split(body, np.cumsum(lengths.ravel())[:-1])  # kept, taken, kept, taken, ...
        marks = [np.array([sentinel], text.dtype) for sentinel in sentinels[:spans]]
        source = [part for i in range(spans) for part in (pieces[2 * i], marks[i])]
        target = [part for i in range(spans) for part in (marks[i], pieces[2 * i + 1])]
        return np.concatenate([*source, closing]), np.concatenate([*target, [end]])

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy of the target's tokens, and how many were the likeliest."""
        return logits.cross_entropy(batch["label"], batch["weight"])


def _parts(total: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of n numbers of 1 or more, each way as likely as any other."""
    cuts = np.sort(rng.choice(total - 1, n - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _fill(arrays: Batch, row: int, begin: int, slot: int, ids: np.ndarray, prefix: str = "") -> None:
    place = slice(begin, begin + len(ids))
    for name, values in (("ids", ids), ("segment", slot), ("position", np.arange(len(ids)))):
        arrays[prefix + name][row, place] = values
