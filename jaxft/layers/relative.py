"""Positions as a bias of attention that depends on how far apart two tokens are (Raffel et al. 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.layers.parameter import Init, parameter


class RelativeBias(nnx.Module):
    """T5's: distances fall into `buckets`, each with a learned number for every head.

    Half of the buckets hold one distance each, the others ever more, up to `longest` and all beyond. `causal`: keys
    stand before their query; else half of all buckets are for those behind it.
    """

    def __init__(self, heads: int, buckets: int, longest: int, *, causal: bool, init: Init):
        self.longest, self.causal = longest, causal
        self.table = parameter((buckets, heads), ("T", "H"), init)

    def __call__(self, length: int) -> jax.Array:
        """[1, H, L, L] in float32, for a row of `length` tokens attending to each other."""
        heads, ahead_W = self.table.shape[1], np.arange(1 - length, length)  # of a key: every distance that there is
        bias_HW = self._by_distance(ahead_W)
        # Row l of the result is bias_HW from place L - 1 - l on. Repeated with one number more and read with the old
        # period, each row moves by one: a reshape, whose gradient is a sum; that of an index would be a scatter.
        repeated = jnp.tile(jnp.pad(bias_HW, ((0, 0), (0, 1))), (1, length))
        rows_HLW = repeated[:, : length * len(ahead_W)].reshape(heads, length, len(ahead_W))
        return rows_HLW[None, :, :, length - 1 :]

    def of_one(self, at: jax.Array, length: int) -> jax.Array:
        """Of these only the row of the query at place `at`, [1, H, 1, L]."""
        bias_HW = self._by_distance(np.arange(1 - length, length))
        return jax.lax.dynamic_slice_in_dim(bias_HW, length - 1 - at, length, axis=1)[None, :, None]

    def before(self, position_BL: jax.Array, count: int, length: int) -> jax.Array:
        """[B, H, L, M]: of queries at places below `length` of a text, to M = `count` tokens that stand before it."""
        bias_HW = self._by_distance(np.arange(1 - length - count, 0))
        which_BLM = length - 1 - position_BL[:, :, None] + jnp.arange(count)[None, None]
        return jnp.moveaxis(jnp.take(bias_HW, which_BLM, axis=1, mode="clip"), 0, 1)

    def _by_distance(self, ahead_W: np.ndarray) -> jax.Array:
        """The numbers of keys so far ahead of their query, [H, W]."""
        which_W = bucket(ahead_W, self.table.shape[0], self.longest, causal=self.causal)
        return self.table[...].astype(jnp.float32)[which_W].T


def bucket(ahead: np.ndarray, buckets: int, longest: int, *, causal: bool) -> np.ndarray:
    """The bucket of each distance of a key ahead of its query. Raffel et al. 2020, their code."""
    offset = np.zeros_like(ahead)
    if not causal:
        buckets //= 2
        offset = np.where(ahead > 0, buckets, 0)
    distance = np.maximum(-ahead, 0) if causal else np.abs(ahead)
    exact = buckets // 2
    # In float32 and in this order, as torch does: at the borders the last bit decides.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(longest / exact)
    )
    coarse = exact + (growth * np.float32(buckets - exact)).astype(np.int64)
    return offset + np.where(distance < exact, distance, np.minimum(coarse, buckets - 1))
