"""A convolution along the row beside a layer: near tokens meet before attention sorts them out."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.attention import Where
from jaxft.layers.dense import affine
from jaxft.layers.dropout import dropout
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Init, parameter, zeros
from jaxft.layers.stack import pick


class ConvBeside(nnx.Module):
    """norm(y + act(dropout(conv(x)))), where y is what a layer makes of x, as in the larger DeBERTa-v2.

    `taps`, an odd number, are the tokens that one is computed from, itself in the middle; beyond its segment all is 0.
    """

    def __init__(self, d_model: int, taps: int, *, act: str, eps: float, drop: float, init: Init):
        self.taps, self.act, self.drop = taps, act, drop
        self.kernel = parameter((taps, d_model, d_model), ("T", "D", "P"), init)
        self.bias = parameter((d_model,), ("P",), zeros)
        self.norm = LayerNorm(d_model, eps)

    def __call__(
        self, x_BMD: jax.Array, y_BLD: jax.Array, where: Where, key: jax.Array | None, at_BS: jax.Array | None
    ) -> jax.Array:
        """`y` is of all tokens, or of those at the places `at_BS`."""
        conv_BLD = self._conv(x_BMD, where.key_BM)
        if at_BS is not None:
            conv_BLD = pick(conv_BLD, at_BS)
        return self.norm(y_BLD + ACTIVATIONS[self.act](dropout(conv_BLD, self.drop, key)))

    def _conv(self, x_BLD: jax.Array, segment_BL: jax.Array) -> jax.Array:
        L, beyond = x_BLD.shape[1], self.taps // 2
        wide_BXD = jnp.pad(x_BLD, ((0, 0), (beyond, beyond), (0, 0)))
        wide_BX = jnp.pad(segment_BL, ((0, 0), (beyond, beyond)), constant_values=-1)
        near = [
            jnp.where((wide_BX[:, t : t + L] == segment_BL)[..., None], wide_BXD[:, t : t + L], 0)
            for t in range(self.taps)
        ]
        kernel = self.kernel[...].astype(x_BLD.dtype)
        return affine(
            jnp.concatenate(near, -1), kernel.reshape(-1, kernel.shape[-1]), self.bias[...].astype(x_BLD.dtype)
        )
