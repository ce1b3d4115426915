"""What is kept of a text while it is written: the keys and values of every token so far, so that each is computed once.

The first step is the ordinary pass over whole rows, whose attention notes down its keys and values. Every later one is
a pass over one more token a row, whose queries see the noted keys beside their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]  # keys and values, [B, M, G, K] each


@dataclass(frozen=True)
class Cache:
    """Keys and values of rows whose texts end together: padding, if any, comes first. The leading axis is B.

    `source`: those that the layers of a decoder have of its source, and `source_segment_BM`; none of a decoder alone.
    """

    layers: tuple[Pair, ...]
    segment_BM: jax.Array  # of every place, also of those to come; 0: padding
    at: jax.Array  # the place of the next token, int32
    source: tuple[Pair, ...] = ()
    source_segment_BM: jax.Array | None = None

    def gather(self, row_B: jax.Array) -> Self:
        """Each row goes on from what was kept of row `row_B`, which has the same source."""
        layers = jax.tree.map(lambda kept: kept[row_B], self.layers)
        return type(self)(layers, self.segment_BM, self.at, self.source, self.source_segment_BM)

    def repeat(self, times: int) -> Self:
        """Every row so many times in a row."""
        return jax.tree.map(lambda kept: kept if kept.ndim == 0 else jnp.repeat(kept, times, axis=0), self)


jax.tree_util.register_dataclass(
    Cache, data_fields=["layers", "segment_BM", "at", "source", "source_segment_BM"], meta_fields=[]
)


@dataclass
class Memory:
    """The pair of one attention, in a box that it fills while a program is traced.

    `pair` None: this is the first step, and whatever comes is noted. `at` None: nothing is added any more.
    """

    pair: Pair | None = None
    at: jax.Array | None = None

    def with_new(self, make: Callable[[], Pair]) -> Pair:
        """The keys and values that queries may see, with those of the tokens of this step, which `make` computes."""
        if self.pair is None:
            self.pair = make()
        elif self.at is not None:
            (k_BMGK, v_BMGK), (k_BLGK, v_BLGK), at = self.pair, make(), self.at
            self.pair = _put(k_BMGK, k_BLGK, at), _put(v_BMGK, v_BLGK, at)
        return self.pair


def _put(old_BMGK: jax.Array, new_BLGK: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old_BMGK, new_BLGK, at, axis=1)


def memories(pairs: Sequence[Pair], layers: int, at: jax.Array | None = None) -> list[Memory]:
    """One for each of the layers; of no `pairs` they are empty."""
    return [Memory(pair, at) for pair in pairs] if pairs else [Memory() for _ in range(layers)]


def noted(boxes: Sequence[Memory], length: int) -> tuple[Any, ...]:
    """The pairs of all boxes, with room for a text of `length` tokens."""

    def room(kept_BMGK: jax.Array) -> jax.Array:
        more = length - kept_BMGK.shape[1]
        return jnp.pad(kept_BMGK, ((0, 0), (0, more), (0, 0), (0, 0))) if more else kept_BMGK

    return tuple(jax.tree.map(room, box.pair) for box in boxes)
