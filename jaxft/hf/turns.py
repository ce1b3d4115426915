"""Conversations -> token ids, and which of them are to be learned."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.hf.tokenizer import TextEncoder
from jaxft.labels import NO_LABEL


class EncodedTurns(NamedTuple):
    """As tokenizer.Encoded, of a text whose every second piece is learned; and the label of each token.

    It is the next token where that one is learned, else -100. `lost`: learned tokens that were cut off; `whole`: tokens
    of the whole text.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool
    labels: np.ndarray  # int32 [length]
    lost: int
    whole: int

    def tags(self, label: Any) -> tuple[np.ndarray, int]:
        """(label of each token, how many have none because they were cut off)."""
        return self.labels, self.lost


def encode(encoder: TextEncoder, texts: Sequence[Sequence[str]], max_length: int) -> list[EncodedTurns]:
    """Ids of the texts that these pieces make up, of each at most the first `max_length`, no special tokens added.

    A token is learned that has a letter of a learned piece: of those across a border, too, as in transformers.
    """
    encoder.tokenizer.no_padding()
    encoder.tokenizer.no_truncation()
    wholes = ["".join(pieces) for pieces in texts]
    encodings = encoder.tokenizer.encode_batch(wholes, add_special_tokens=False)
    return [_of(one, pieces, max_length) for one, pieces in zip(encodings, texts, strict=True)]


def _of(encoding: Any, pieces: Sequence[str], max_length: int) -> EncodedTurns:
    ids_T = np.array(encoding.ids, np.int64)
    begin_T, end_T = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    edges = np.cumsum([0, *map(len, pieces)])
    learned_T = np.zeros(len(ids_T), bool)
    for begin, end in zip(edges[1:-1:2], edges[2::2], strict=True):
        learned_T |= (begin_T < end) & (end_T > begin)
    label_T = np.full(len(ids_T), NO_LABEL, np.int32)
    label_T[:-1][learned_T[1:]] = ids_T[1:][learned_T[1:]]
    kept = slice(max_length)
    label_T[max_length - 1 :] = NO_LABEL  # the token after the last one is not there
    lost = int(learned_T[1:].sum() - (label_T != NO_LABEL).sum())
    ids = ids_T[kept].astype(np.uint32)
    none = np.zeros(len(ids), np.uint32)
    return EncodedTurns(ids, none, len(ids_T) > max_length, label_T[kept], lost, len(ids_T))
