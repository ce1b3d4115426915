"""What stands on an encoder: one logit vector per segment, or per token, in float32."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Init


class SequenceHead(nnx.Module):
    """classifier(dropout(act(pooler(x)))) over the first token of each segment; `drop_first` drops x as well."""

    def __init__(self, d_model: int, outputs: int, *, act: str, drop: float, init: Init, drop_first: bool = False):
        self.act, self.drop, self.drop_first = act, drop, drop_first
        self.pooler = Dense(d_model, d_model, ("D", "P"), init)
        self.classifier = Dense(d_model, outputs, ("P", "C"), init)

    @staticmethod
    def reads(batch: Mapping[str, jax.Array]) -> jax.Array | None:
        """Positions [B, S] whose vectors the head is given; None for all."""
        return batch["first"]

    def __call__(self, x_BSD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, S, D] -> logits_BSC."""
        key_first, key = (None, None) if key is None else jax.random.split(key)
        if self.drop_first:
            x_BSD = dropout(x_BSD, self.drop, key_first)
        pooled_BSP = ACTIVATIONS[self.act](self.pooler(x_BSD))
        return self.classifier(dropout(pooled_BSP, self.drop, key)).astype(jnp.float32)


class TokenHead(nnx.Module):
    """classifier(dropout(x)) of every token: tags, or with two outputs the start and end of an answer."""

    def __init__(self, d_model: int, outputs: int, *, drop: float, init: Init):
        self.drop = drop
        self.classifier = Dense(d_model, outputs, ("D", "C"), init)

    @staticmethod
    def reads(batch: Mapping[str, jax.Array]) -> jax.Array | None:
        return None

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> logits_BLC."""
        return self.classifier(dropout(x_BLD, self.drop, key)).astype(jnp.float32)
