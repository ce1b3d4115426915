"""Attention: one function, and the projections around it."""

from dataclasses import dataclass

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

    segment_BL: jax.Array

    def mask_BLM(self) -> jax.Array:
        return self.segment_BL[:, :, None] == self.segment_BL[:, None, :]


jax.tree_util.register_dataclass(Where, data_fields=["segment_BL"], meta_fields=[])


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

    def __call__(self, x_BLD: jax.Array, where: Where, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        B, L, D = x_BLD.shape
        q_BLHK, k_BLHK, v_BLHK = (
            constrain(dense(x_BLD).reshape(B, L, self.heads, D // self.heads), "BLHK")
            for dense in (self.q, self.k, self.v)
        )
        mixed_BLHK = attention(q_BLHK, k_BLHK, v_BLHK, where, (D // self.heads) ** -0.5, self.drop, key)
        return constrain(self.out(mixed_BLHK.reshape(B, L, D)), "BLD")
