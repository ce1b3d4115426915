"""Normalisation, in float32 whatever the activations are."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.parameter import ones, parameter, zeros
from jaxft.layers.sums import column_sum


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis (Ba et al. 2016), biased variance as in torch."""

    def __init__(self, d_model: int, eps: float, bias: bool = True):
        self.eps = eps
        self.scale = parameter((d_model,), ("D",), ones)
        self.bias = parameter((d_model,), ("D",), zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        bias_D = None if self.bias is None else self.bias[...].astype(jnp.float32)
        return scaled(unit, self.scale[...].astype(jnp.float32), bias_D).astype(x.dtype)


class RmsNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang & Sennrich 2019).

    `offset`: the stored weight is scale - 1, as Gemma has it.
    """

    def __init__(self, d_model: int, eps: float, *, offset: bool = False, axes: tuple[str] = ("D",)):
        self.eps, self.offset = eps, offset
        self.scale = parameter((d_model,), axes, zeros if offset else ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        unit = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        scale_D = self.scale[...].astype(jnp.float32)
        return scaled(unit, 1 + scale_D if self.offset else scale_D, None).astype(x.dtype)


@jax.custom_vjp
def scaled(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None) -> jax.Array:
    """x [..., D] * scale + bias in float32. The gradient is written out for its sums over rows: see sums.py."""
    y = x * _row(scale_D, x)
    return y if bias_D is None else y + _row(bias_D, x)


def _forward(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None) -> tuple[jax.Array, Any]:
    return scaled(x, scale_D, bias_D), (x, scale_D, bias_D is None)


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, scale_D, plain = saved
    return g * _row(scale_D, g), column_sum(g * x), None if plain else column_sum(g)


scaled.defvjp(_forward, _backward)


def _row(vector_D: jax.Array, x: jax.Array) -> jax.Array:
    return vector_D.reshape((1,) * (x.ndim - 1) + vector_D.shape)
