"""The affine layer."""

from typing import Any

import jax
from flax import nnx

from jaxft.layers.parameter import Init, parameter, zeros
from jaxft.layers.sums import column_sum, outer_sum


class Dense(nnx.Module):
    """y = x @ kernel + bias, with a 2-D kernel [in, out] whose letters are `axes`."""

    def __init__(self, inputs: int, outputs: int, axes: tuple[str, str], init: Init, bias: bool = True):
        self.kernel = parameter((inputs, outputs), axes, init)
        self.bias = parameter((outputs,), axes[1:], zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        kernel = self.kernel[...].astype(x.dtype)
        return affine(x, kernel, None if self.bias is None else self.bias[...].astype(x.dtype))


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x [..., in] @ kernel [in, out] + bias [out], all of one dtype.

    The gradient is written out for its sums over rows: see sums.py.
    """
    return _affine(x, kernel, bias)


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = x @ kernel
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    # Not `affine`: in there remat="dots" would not see the product, and compute it again.
    return _affine(x, kernel, bias), (x, kernel, bias is None)


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, plain = saved
    return (
        g @ kernel.T,
        outer_sum(x, g),
        None if plain else column_sum(g).astype(g.dtype),
    )


affine.defvjp(_forward, _backward)
