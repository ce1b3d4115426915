"""Words drawn by their probability, of vocabularies that may be shared out over devices."""

import math

import jax
import jax.numpy as jnp

from jaxft import sharding

BLOCK = 128  # words at most that are summed together before single ones are looked at


def drawn(logits_BLV: jax.Array, point_BL: jax.Array) -> jax.Array:
    """The word of each token where the sum of probabilities from 0 on passes `point` (in [0, 1)), int32 [B, L].

    Words of -inf are never drawn. First a block of words is found, then the word in it: only sums of blocks leave the
    devices that have their words. (The inversion method: Devroye 1986, chapter III.2.)
    """
    B, L, V = logits_BLV.shape
    active = sharding.active()
    shared = 1 if active is None else sharding.pieces("V", active.rules, active.mesh)
    size = math.gcd(V // shared, BLOCK)
    likely_BLV = jnp.exp(logits_BLV - logits_BLV.max(-1, keepdims=True))
    likely_BLNI = likely_BLV.reshape(B, L, V // size, size)
    upto_BLN = jnp.cumsum(likely_BLNI.sum(-1), axis=-1)
    block_BL1, rest_BL1 = _passed(upto_BLN, point_BL[..., None] * upto_BLN[..., -1:])
    # A comparison instead of a gather: the blocks may be shared out.
    chosen_BLN = block_BL1 == jax.lax.broadcasted_iota(jnp.int32, upto_BLN.shape, 2)
    inside_BLI = jnp.where(chosen_BLN[..., None], likely_BLNI, 0).sum(2)
    word_BL1, _ = _passed(jnp.cumsum(inside_BLI, axis=-1), rest_BL1)
    return (block_BL1 * size + word_BL1)[..., 0]


def _passed(upto_BLN: jax.Array, point_BL1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(where the sums pass the point, how far it is beyond the sum before): int32 and float32 [B, L, 1].

    Rounding may put the point at the whole sum or beyond: then it is the last that adds something.
    """
    last_BL1 = (upto_BLN < upto_BLN[..., -1:]).sum(-1, keepdims=True)
    at_BL1 = jnp.minimum((upto_BLN <= point_BL1).sum(-1, keepdims=True), last_BL1)
    before_BLN = jnp.where(jax.lax.broadcasted_iota(jnp.int32, upto_BLN.shape, 2) < at_BL1, upto_BLN, 0)
    return at_BL1, point_BL1 - before_BLN.max(-1, keepdims=True)
