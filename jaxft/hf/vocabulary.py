"""What a task may ask of a vocabulary: its special tokens, and where words begin."""

import itertools
import json
from dataclasses import dataclass

import numpy as np

from jaxft.hf.tokenizer import SENTINEL, TextEncoder

SPACES = ("\u0120", "\u2581")  # what begins a word, of byte-level BPE and of SentencePiece


@dataclass(frozen=True)
class Vocabulary:
    """mask_id, end_id: the mask's and the end-of-text token's ids, None without one. sentinels: ids of T5's marks, in
    order. special_V: special tokens. begins_V: a word begins with it."""

    mask_id: int | None
    end_id: int | None
    sentinels: tuple[int, ...]
    special_V: np.ndarray
    begins_V: np.ndarray


def of(encoder: TextEncoder) -> Vocabulary:
    ids = encoder.tokenizer.get_vocab(with_added_tokens=True)
    added = encoder.tokenizer.get_added_tokens_decoder()
    special = {id for id, token in added.items() if token.special} | set(encoder.named.values()) | {encoder.pad_id}
    model = json.loads(encoder.tokenizer.to_str())["model"]
    inside = model.get("continuing_subword_prefix")  # "##" of WordPiece
    spaced = not inside and any(token.startswith(SPACES) for token in ids)
    special_V, begins_V = np.zeros(encoder.vocab_size, bool), np.ones(encoder.vocab_size, bool)
    special_V[list(special)] = True
    for token, id in ids.items():
        if id not in special:
            begins_V[id] = token.startswith(SPACES) if spaced else not (inside and token.startswith(inside))
    marks = itertools.takewhile(ids.__contains__, map(SENTINEL.format, itertools.count()))
    sentinels = tuple(ids[mark] for mark in marks)
    return Vocabulary(encoder.named.get("mask_token"), encoder.named.get("eos_token"), sentinels, special_V, begins_V)


def blank(size: int) -> Vocabulary:
    """Of a tokenizer that is not there, with all that a task may ask for: the last tokens are marks of T5's."""
    none_V = np.zeros(size, bool)
    return Vocabulary(1, 2, tuple(range(max(3, size - 100), size)), none_V, ~none_V)


def difference(ours: TextEncoder, theirs: TextEncoder) -> str:
    """In what two tokenizers do not read texts alike, in words; "" where they do."""
    mine, other = (encoder.tokenizer.get_vocab(with_added_tokens=True) for encoder in (ours, theirs))
    if mine != other:
        token = next(token for token in (*mine, *other) if mine.get(token) != other.get(token))
        ids = " and ".join(
            f"{vocab.get(token, 'unknown')} {where}" for vocab, where in ((other, "there"), (mine, "here"))
        )
        return f"of {len(other):,} entries there and {len(mine):,} here {token!r} is {ids}"
    mine, other = (json.loads(encoder.tokenizer.to_str()) for encoder in (ours, theirs))
    steps = ("normalizer", "pre_tokenizer", "model", "post_processor")
    return next((f"the {step.replace('_', '-')} is another" for step in steps if mine[step] != other[step]), "")
