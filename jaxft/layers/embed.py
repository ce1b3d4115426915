"""Tables looked up by id."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.parameter import Init, parameter
from jaxft.sharding import constrain


class Embed(nnx.Module):
    """A table [rows, D] looked up by integer id. Ids out of range would clamp: they are refused before."""

    def __init__(self, rows: int, d_model: int, axes: tuple[str, str], init: Init):
        self.letter = axes[0]
        self.table = parameter((rows, d_model), axes, init)

    def __call__(self, ids_BL: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, L] -> [B, L, D] in `dtype`."""
        # The columns are gathered before the look-up: a table sharded both ways makes XLA rematerialise it in full.
        table = constrain(self.table[...].astype(dtype), self.letter + "_")
        return constrain(jnp.take(table, ids_BL, axis=0, mode="clip"), "BLD")
