"""Dropout as a function of a key: None means evaluation."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with a share `rate` of its elements zeroed and the rest scaled up; `x` itself when `key` is None.

    The rate is rounded to 1/256 and the scale follows the rounded rate, so the expectation is exact. One 32-bit
    threefry word gives four bytes: drawing a float for each element costs more than the layer it serves (docs/log.md).
    Source: Srivastava et al. 2014.
    """
    threshold = round(rate * 256)
    if key is None or threshold == 0:
        return x
    if threshold >= 256:
        raise ValueError(f"dropout rate {rate} leaves nothing; it must be below 1")
    words = -(-x.shape[-1] // 4)
    bits = jax.random.bits(key, (*x.shape[:-1], words), jnp.uint32)
    bytes_ = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(*x.shape[:-1], words * 4)[..., : x.shape[-1]]
    scale = jnp.asarray(256 / (256 - threshold), x.dtype)
    return jnp.where(bytes_ >= threshold, x * scale, jnp.zeros((), x.dtype))
