"""Rows of a corpus: its documents one after the other, cut every L tokens.

Row r holds the tokens r * L to (r + 1) * L of all documents in a row, so the plan is this sentence. No token is cut
off; a document that goes on in the next row is a segment of its own there. As in pipeline.py batch k is a pure
function of (cache, seed, k).
"""

from collections.abc import Callable, Iterator

import numpy as np

from jaxft.data import pipeline
from jaxft.data.pipeline import EMPTY, Batch, Share
from jaxft.data.tokens import TokenCache
from jaxft.labels import NO_LABEL

TRAIN, EVAL = 0, 1  # streams of random numbers


class Draws:
    """Random numbers of the rows `local` of a global batch: those of a row are the same whoever else draws some."""

    def __init__(self, seed: tuple[int, ...], batch: int, local: np.ndarray):
        self._seed, self._batch, self._local = seed, batch, local
        self._all = np.random.default_rng(seed)

    def random(self, width: int) -> np.ndarray:
        """From 0 to 1, float64 [B, width]."""
        return self._all.random((self._batch, width))[self._local]

    def below(self, end: int, width: int) -> np.ndarray:
        """Whole numbers from 0 to end - 1, int64 [B, width]."""
        return self._all.integers(0, end, (self._batch, width))[self._local]

    def of_row(self, row: int) -> np.random.Generator:
        """A row's own, for one that needs who knows how many."""
        return np.random.default_rng((*self._seed, int(self._local[row])))


Change = Callable[[Batch, Draws], Batch]  # of the rows that a process has, by random numbers


def rows(tokens: TokenCache, row_length: int) -> int:
    """Rows of the corpus; the last one may be shorter."""
    return -(-int(tokens.offsets[-1]) // row_length)


def pieces(tokens: TokenCache, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, tokens) of each piece of a document within a row, int64 [pieces] each."""
    total = int(tokens.offsets[-1])
    edges = np.union1d(tokens.offsets, np.append(np.arange(0, total, row_length), total))
    return edges[:-1] // row_length, np.diff(edges)


def batches(
    tokens: TokenCache,
    change: Change,
    *,
    batch: int,
    row_length: int,
    seed: int,
    start: int,
    share: Share,
) -> Iterator[Batch]:
    """Endless batches from the `start`-th on: every row once an epoch, in a new order each epoch.

    As pipeline.batches: of the global batch this process has its `share` and reads no other row.
    """
    local = share.rows(batch)

    def make(step: int, rows_B: np.ndarray) -> Batch:
        return change(assemble(tokens, rows_B[local], row_length), Draws((seed, TRAIN, step), batch, local))

    return pipeline.stream(rows(tokens, row_length), make, batch=batch, seed=seed, start=start, shuffle=True)


def eval_batches(
    tokens: TokenCache, change: Change, *, batch: int, row_length: int, seed: int, share: Share
) -> Iterator[Batch]:
    """One pass in order, changed alike at every pass. Empty rows fill the last batch."""
    local = share.rows(batch)
    for step, rows_B in enumerate(pipeline.passing(rows(tokens, row_length), batch)):
        yield change(assemble(tokens, rows_B[local], row_length), Draws((seed, EVAL, step), batch, local))


def assemble(tokens: TokenCache, rows_B: np.ndarray, row_length: int) -> Batch:
    """The batch of these rows (EMPTY = a row without tokens).

    ids, type, segment (0 = padding, 1.. = the row's documents), position (from 0 in each segment): int32 [B, L].
    label: the next token of the same document, which may stand in the next row, else NO_LABEL; weight: 1 where there
    is one: int32 and float32 [B, L]. bytes: how much text a row holds, float32 [B]: of each document its bytes, which
    the cache has for a label, in proportion to its tokens. example: the row, int32 [B, 1].
    """
    total, L = int(tokens.offsets[-1]), row_length
    at_BL = np.where(rows_B[:, None] == EMPTY, total, rows_B[:, None] * L + np.arange(L))
    real_BL = at_BL < total
    at_BL = np.minimum(at_BL, total - 1)
    document_BL = np.searchsorted(tokens.offsets, at_BL, side="right") - 1
    begins_BL = np.maximum(tokens.offsets[document_BL], np.maximum(rows_B, 0)[:, None] * L)
    ends_BL = tokens.offsets[document_BL + 1]
    follows_BL = real_BL & (at_BL + 1 < ends_BL)
    next_BL = tokens.ids[np.minimum(at_BL + 1, total - 1)].astype(np.int32)
    bytes_BL = tokens.labels[document_BL] / (ends_BL - tokens.offsets[document_BL])

    def tokens_BL(values_BL: np.ndarray) -> np.ndarray:
        return np.where(real_BL, values_BL, 0).astype(np.int32)

    return {
        "ids": tokens_BL(tokens.ids[at_BL]),
        "type": tokens_BL(tokens.types[at_BL]),
        "segment": tokens_BL(document_BL - document_BL[:, :1] + 1),
        "position": tokens_BL(at_BL - begins_BL),
        "label": np.where(follows_BL, next_BL, NO_LABEL),
        "weight": follows_BL.astype(np.float32),
        "bytes": np.where(real_BL, bytes_BL, 0).sum(1).astype(np.float32),
        "example": rows_B.astype(np.int32)[:, None],
    }
