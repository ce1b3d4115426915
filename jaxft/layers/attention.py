"""Attention: one function, and the projections around it."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.parameter import Init
from jaxft.sharding import constrain

# Finite, so that a fully masked row is a uniform average rather than NaN.
MASKED = -1e30


@dataclass(frozen=True)
class Where:
    """Which query may attend to which key: a description, not a dense mask, so that a kernel can use it.

    A query sees a key of the same segment. Segment 0 is padding: it sees only padding and is seen by nobody else.
    """

    query_BL: jax.Array  # segment of each query
    key_BM: jax.Array  # segment of each key

    @classmethod
    def within(cls, segment_BL: jax.Array) -> Self:
        """Every token asks, and is asked within its segment."""
        return cls(segment_BL, segment_BL)

    def at(self, position_BS: jax.Array) -> Self:
        """The same for the queries at these positions alone."""
        return dataclasses.replace(self, query_BL=jnp.take_along_axis(self.query_BL, position_BS, axis=1))

    def mask_BLM(self) -> jax.Array:
        return self.query_BL[:, :, None] == self.key_BM[:, None, :]


jax.tree_util.register_dataclass(Where, data_fields=["query_BL", "key_BM"], meta_fields=[])


def attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    where: Where,
    scale: float,
    drop: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T * scale) v over the keys that `where` allows, [B, L, H, K]; softmax in float32.

    Source: Vaswani et al. 2017, eq. 1. `drop` is the dropout rate of the attention weights, as BERT has it.
    """
    score_BHLM = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK * jnp.asarray(scale, q_BLHK.dtype), k_BMHK)
    masked_BHLM = jnp.where(where.mask_BLM()[:, None], score_BHLM.astype(jnp.float32), MASKED)
    weight_BHLM = jax.nn.softmax(masked_BHLM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("BHLM,BMHK->BLHK", dropout(weight_BHLM, drop, key), v_BMHK)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with separate query, key, value and output projections."""

    def __init__(self, d_model: int, heads: int, init: Init, drop: float):
        self.heads, self.drop = heads, drop
        self.q = Dense(d_model, d_model, ("D", "HK"), init)
        self.k = Dense(d_model, d_model, ("D", "HK"), init)
        self.v = Dense(d_model, d_model, ("D", "HK"), init)
        self.out = Dense(d_model, d_model, ("HK", "D"), init)

    def __call__(self, x_BLD: jax.Array, over_BMD: jax.Array, where: Where, key: jax.Array | None) -> jax.Array:
        """Queries of `x_BLD` over keys and values of `over_BMD`, [B, L, D]."""
        q_BLHK = self._heads(self.q(x_BLD))
        k_BMHK, v_BMHK = self._heads(self.k(over_BMD)), self._heads(self.v(over_BMD))
        mixed_BLHK = attention(q_BLHK, k_BMHK, v_BMHK, where, q_BLHK.shape[-1] ** -0.5, self.drop, key)
        return constrain(self.out(mixed_BLHK.reshape(x_BLD.shape)), "BLD")

    def _heads(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, H, K]."""
        B, L, D = x_BLD.shape
        return constrain(x_BLD.reshape(B, L, self.heads, D // self.heads), "BLHK")
