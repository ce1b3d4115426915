"""Words with a label each: as text.py, with labels of tokens."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.hf import tokenizer
from jaxft.inputs import text

placeholders = text.placeholders
beside = text.beside
blank = functools.partial(text.blank, tags=True)
prepare = functools.partial(text.prepare, encode=tokenizer.TextEncoder.encode_words)


class Reader(text.Reader):
    """The tokenizer of a hub folder, given words. `length`: the most tokens to read (0: as trained)."""

    def encode(self, texts: list[tuple[Any, str | None]]) -> Sequence[Any]:
        return self._encoder.encode_words(texts, self._length)

    def gathered(
        self, examples: Sequence[Any], outputs: int, computed: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]]
    ) -> list[np.ndarray]:
        """[words, outputs] of each of `examples`, whose labels are the numbers of its words; NaN without a token."""
        begins_X = np.cumsum([0, *(len(example.label) for example in examples)])
        out = np.full((begins_X[-1], outputs), np.nan, np.float32)
        for batch, logits_BLC in computed:
            at_WB = np.nonzero(batch["label"] >= 0)
            example_W = batch["example"][at_WB[0], batch["segment"][at_WB] - 1]
            out[begins_X[example_W] + batch["label"][at_WB]] = logits_BLC[at_WB]
        return np.split(out, begins_X[1:-1])
