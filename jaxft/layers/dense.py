"""The affine layer."""

from typing import Any

import jax
from flax import nnx

from jaxft.layers.frozen import Frozen
from jaxft.layers.parameter import Init, parameter, zeros
from jaxft.layers.sums import column_sum, outer_sum


class Dense(nnx.Module):
    """y = x @ kernel + bias, with a 2-D kernel [in, out] whose letters are `axes`.

    `adapter`: what a method of jaxft.peft has put here; it is asked in the place of this layer, with this layer.
    """

    def __init__(self, inputs: int, outputs: int, axes: tuple[str, str], init: Init, bias: bool = True):
        self.kernel = parameter((inputs, outputs), axes, init)
        self.bias = parameter((outputs,), axes[1:], zeros) if bias else None
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return self.plain(x) if self.adapter is None else self.adapter(x, self)

    def plain(self, x: jax.Array, bias: bool = True) -> jax.Array:
        """The same without an adapter, on demand without the bias."""
        kernel = self.kernel[...]
        bias_O = self._bias(x) if bias else None
        if isinstance(kernel, Frozen):
            return frozen_affine(x, kernel, bias_O)
        return affine(x, kernel.astype(x.dtype), bias_O)

    def biased(self, y: jax.Array) -> jax.Array:
        """[..., out] with the bias, where there is one."""
        bias_O = self._bias(y)
        return y if bias_O is None else y + bias_O.reshape((1,) * (y.ndim - 1) + bias_O.shape)

    def _bias(self, like: jax.Array) -> jax.Array | None:
        return None if self.bias is None else self.bias[...].astype(like.dtype)


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


@jax.custom_vjp
def frozen_affine(x: jax.Array, kernel: Frozen, bias: jax.Array | None) -> jax.Array:
    """The same of a kernel that stays. The backward pass makes no gradient of it, and keeps it as it is stored.

    XLA would drop a gradient that nobody asks for, but not out of a scan.
    """
    return _affine(x, kernel.astype(x.dtype), bias)


def _frozen_forward(x: jax.Array, kernel: Frozen, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    return _affine(x, kernel.astype(x.dtype), bias), (kernel, bias is None)


def _frozen_backward(saved: Any, g: jax.Array) -> tuple[jax.Array, None, jax.Array | None]:
    kernel, plain = saved
    return g @ kernel.astype(g.dtype).T, None, None if plain else column_sum(g).astype(g.dtype)


frozen_affine.defvjp(_frozen_forward, _frozen_backward)
