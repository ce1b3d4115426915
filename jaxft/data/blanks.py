"""Token caches of made-up examples, for batches laid out as those of data that are not read (jaxft.plan)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.data.tokens import TokenCache
from jaxft.labels import NO_LABEL


def cache(lengths: Sequence[int], label: Any = None, *, tags: bool = False, chars: bool = False) -> TokenCache:
    """One row of the data in examples of so many tokens, all 0, each with `label`: a number, a list of such, None.

    tags, chars: the labels are of tokens, the characters of tokens are known (TokenCache).
    """
    X, T = len(lengths), sum(lengths)
    labels = np.array([NO_LABEL if label is None or tags else label] * X)
    counts = dict.fromkeys(("bad", "dropped", "truncated", "empty", "lost"), 0)
    return TokenCache(
        folder=None,
        ids=np.zeros(T, np.uint32),
        types=np.zeros(T, np.uint8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=labels.astype(np.int32 if labels.dtype.kind == "i" else np.float32),
        tags=np.zeros(T, np.int32) if tags else None,
        chars=np.zeros((T, 2), np.int32) if chars else None,
        row=np.zeros(X, np.int64),
        counts={"rows": 1, "kept": 1, **counts},
        max_id=0,
        max_type=0,
        bad=(),
        dropped=(),
        fingerprint="",
    )
