"""What stands on a trunk: logits of each segment, of each token, or over the vocabulary, in float32."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.embed import Embed
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Init, parameter, zeros
from jaxft.layers.vocab import VocabLogits
from jaxft.sharding import constrain

Batch = Mapping[str, jax.Array]


def tokens_of_segments(batch: Batch) -> jax.Array:
    """Which tokens are of which segment, bool [B, S, L]; padding is of none."""
    slot_S = jnp.arange(1, batch["first"].shape[1] + 1)
    return batch["segment"][:, None, :] == slot_S[None, :, None]


class SequenceHead(nnx.Module):
    """classifier(dropout(act(pooler(x)))) over the first token of each segment; `drop_first` is the rate for x."""

    def __init__(self, d_model: int, outputs: int, *, act: str, drop: float, init: Init, drop_first: float = 0.0):
        self.act, self.drop, self.drop_first = act, drop, drop_first
        self.pooler = Dense(d_model, d_model, ("D", "P"), init)
        self.classifier = Dense(d_model, outputs, ("P", "C"), init)

    def reads(self, batch: Batch) -> jax.Array | None:
        """Positions [B, S] whose vectors the head is given; None for all."""
        return batch["first"]

    def __call__(self, x_BSD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, S, D] -> logits_BSC."""
        key_first, key = (None, None) if key is None else jax.random.split(key)
        pooled_BSP = ACTIVATIONS[self.act](self.pooler(dropout(x_BSD, self.drop_first, key_first)))
        return self.classifier(dropout(pooled_BSP, self.drop, key)).astype(jnp.float32)


class EosHead(SequenceHead):
    """The same over the last `eos_id` of each segment, or its last token where it has none."""

    def __init__(self, d_model: int, outputs: int, *, act: str, drop: float, init: Init, eos_id: int):
        super().__init__(d_model, outputs, act=act, drop=drop, init=init, drop_first=drop)
        self.eos_id = eos_id

    def reads(self, batch: Batch) -> jax.Array | None:
        L = batch["ids"].shape[1]
        place_BL = jnp.arange(L)[None, :] + L * (batch["ids"] == self.eos_id)  # all of these after all others
        return jnp.maximum(jnp.where(tokens_of_segments(batch), place_BL[:, None, :], -1).max(-1), 0) % L


class LastHead(nnx.Module):
    """classifier(x) over the last token of each segment, which of a decoder is the one that has seen all others."""

    def __init__(self, d_model: int, outputs: int, *, init: Init):
        self.classifier = Dense(d_model, outputs, ("D", "C"), init, bias=False)

    @staticmethod
    def reads(batch: Batch) -> jax.Array | None:
        return batch["first"] + jnp.maximum(tokens_of_segments(batch).sum(-1), 1) - 1

    def __call__(self, x_BSD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, S, D] -> logits_BSC."""
        return self.classifier(x_BSD).astype(jnp.float32)


class TokenHead(nnx.Module):
    """classifier(dropout(transform(x))) of every token: tags, or with two outputs the start and end of an answer."""

    def __init__(
        self,
        d_model: int,
        outputs: int,
        *,
        drop: float,
        init: Init,
        transform: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.drop = drop
        self.transform = transform
        self.classifier = Dense(d_model, outputs, ("D", "C"), init)

    @staticmethod
    def reads(batch: Batch) -> jax.Array | None:
        return None

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> logits_BLC."""
        if self.transform is not None:
            x_BLD = self.transform(x_BLD)
        return self.classifier(dropout(x_BLD, self.drop, key)).astype(jnp.float32)


class DetectionHead(TokenHead):
    """Of every token one logit: that it was put there instead of another (Clark et al. 2020)."""

    def __init__(self, d_model: int, *, act: str, init: Init):
        super().__init__(d_model, 1, drop=0.0, init=init, transform=Transform(d_model, d_model, act, None, init))

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> logits_BL."""
        return super().__call__(x_BLD, key)[..., 0]


class FirstHead(TokenHead):
    """The same over the first token of each segment, which of an image stands for the whole."""

    @staticmethod
    def reads(batch: Batch) -> jax.Array | None:
        return batch["first"]


class VectorHead(nnx.Module):
    """The vector of every token, as it is: of models that are asked for nothing else."""

    @staticmethod
    def reads(batch: Batch) -> jax.Array | None:
        return None

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> the same in float32."""
        return x_BLD.astype(jnp.float32)


class FixedBias(nnx.Module):
    """Numbers that a checkpoint adds to the logits, [V]: saved again, and not trained."""

    def __init__(self, vocab: int):
        self.bias = parameter((1, vocab), ("T", "V"), zeros)

    def __call__(self) -> jax.Array:
        return jax.lax.stop_gradient(self.bias[0].astype(jnp.float32))


def segment_mean(x_BLD: jax.Array, batch: Batch) -> jax.Array:
    """The mean vector of each segment, [B, S, D], summed in float32."""
    inside_BSL = tokens_of_segments(batch).astype(jnp.float32)
    sum_BSD = jnp.einsum("BSL,BLD->BSD", inside_BSL, x_BLD.astype(jnp.float32))
    return constrain((sum_BSD / jnp.maximum(inside_BSL.sum(-1, keepdims=True), 1)).astype(x_BLD.dtype), "BSD")


class VocabHead(nnx.Module):
    """unembed(transform(x)) + bias over the vocabulary: of the tokens at `at` [B, S] of the batch, without it of all.

    `tied` is the embedding whose table also unembeds (Press & Wolf 2016), None: the head has a table of its own, and
    the bias is that table's. `fixed_bias`: and a FixedBias.
    `softcap` > 0 bounds the logits by cap * tanh(logit / cap); `scale` multiplies the vectors before.
    """

    def __init__(
        self,
        vocab: int,
        d_model: int,
        *,
        init: Init,
        tied: Embed | None,
        bias: bool = False,
        fixed_bias: bool = False,
        softcap: float = 0.0,
        scale: float = 1.0,
        transform: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.softcap, self.scale = softcap, scale
        self.transform = transform
        self.unembed = Embed(vocab, d_model, ("V", "D"), init, bias) if tied is None else tied
        self.bias = parameter((vocab,), ("V",), zeros) if bias and tied is not None else None
        self.fixed = FixedBias(vocab) if fixed_bias else None

    @staticmethod
    def reads(batch: Batch) -> jax.Array | None:
        return batch.get("at")

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> VocabLogits:
        """[B, L, D] -> logits of each token, which nobody has computed yet."""
        if self.transform is not None:
            x_BLD = self.transform(x_BLD)
        if self.scale != 1:
            x_BLD = x_BLD * jnp.asarray(self.scale, x_BLD.dtype)
        bias = self.unembed.bias if self.bias is None else self.bias
        bias_V = None if bias is None else bias[...].astype(jnp.float32)
        if self.fixed is not None:
            bias_V = self.fixed() if bias_V is None else bias_V + self.fixed()
        table_VD = self.unembed.table[...]
        return VocabLogits(x_BLD, table_VD, bias_V, self.softcap, table_VD.shape[0])


class Transform(nnx.Module):
    """norm(act(dense(x))): what a masked LM of the BERT kind does before it unembeds, others before any head.

    `norm` None: none follows.
    """

    def __init__(self, d_model: int, d_embed: int, act: str, norm: Any, init: Init, bias: bool = True):
        self.act = act
        self.dense = Dense(d_model, d_embed, ("D", "P"), init, bias)
        self.norm = norm

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        x_BLD = ACTIVATIONS[self.act](self.dense(x_BLD))
        return x_BLD if self.norm is None else self.norm(x_BLD)
