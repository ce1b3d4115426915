"""Rows of segments and padding, and the values and gradients of an attention over them: what these tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.attention import Where

B, K = 2, 8


def segments(length):
    """A row of two segments with padding between and behind them, and a row without padding."""
    third = length // 3
    row = [1] * third + [0] * 2 + [2] * third
    return np.array([row + [0] * (length - len(row)), [1] * length], np.int32)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def where_of(L, M=None, **how):
    return Where(jnp.asarray(segments(L)), jnp.asarray(segments(M or L)), None, **how)


def heads(L, M=None, *, H=4, G=2, size=K):
    M = M or L
    return drawn(B, L, H, size), drawn(B, M, G, size, seed=1), drawn(B, M, G, size, seed=2)


def run(function, where, *arrays):
    """(values, gradients) of the tokens that are not padding, which nobody reads."""
    real_BL = (where.query_BL > 0)[:, :, None, None]
    y, pull = jax.vjp(jax.jit(function), *arrays)
    return y * real_BL, pull(drawn(*y.shape, seed=3) * real_BL)


def assert_equal(ours, theirs, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)
