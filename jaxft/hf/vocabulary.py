"""What a task may ask of a vocabulary: its special tokens, and where words begin."""

import json
from dataclasses import dataclass

import numpy as np

from jaxft.hf.tokenizer import TextEncoder

SPACES = ("\u0120", "\u2581")  # what begins a word, of byte-level BPE and of SentencePiece


@dataclass(frozen=True)
class Vocabulary:
    """mask_id: the mask token's id, None without one. special_V: special tokens. begins_V: a word begins with it."""

    mask_id: int | None
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
    return Vocabulary(encoder.named.get("mask_token"), special_V, begins_V)
