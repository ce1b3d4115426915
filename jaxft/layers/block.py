"""Blocks: attention and feed-forward around a residual stream, with the norm after or before each."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxft.layers.attention import Attention, Sight
from jaxft.layers.dropout import dropout
from jaxft.layers.mlp import Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Init
from jaxft.layers.stack import pick


class PostNormBlock(nnx.Module):
    """The block of BERT and those after it. Each part: dropout, add, norm (Vaswani et al. 2017, section 3.1).

    `attn` takes the place of plain self-attention over `heads`. `adapter`: see `add`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int,
        heads: int,
        act: str,
        eps: float,
        dropout: float,
        attention_dropout: float,
        init: Init,
        attn: Attention | None = None,
    ):
        self.drop = dropout
        self.attn = Attention(d_model, heads, init, drop=attention_dropout) if attn is None else attn
        self.attn_norm = LayerNorm(d_model, eps)
        self.mlp = Mlp(d_model, d_ff, act, init)
        self.mlp_norm = LayerNorm(d_model, eps)
        self.adapter = nnx.data(None)

    def __call__(
        self, over_BMD: jax.Array, sight: Sight, key: jax.Array | None, at_BS: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        """[B, M, D] -> [B, M, D], or [B, S, D] at the positions `at_BS` alone."""
        key_weights, key_attn, key_mlp = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BLD, sight = (over_BMD, sight) if at_BS is None else (pick(over_BMD, at_BS), sight.at(at_BS))
        x_BLD = self.attn_norm(x_BLD + dropout(self.attn(x_BLD, over_BMD, sight, key_weights), self.drop, key_attn))
        return add(x_BLD, dropout(self.mlp(x_BLD), self.drop, key_mlp), self.mlp_norm, self.adapter), None


class PreNormBlock(nnx.Module):
    """The block of GPT-2, Llama and those after them. Each part: norm, then add (Xiong et al. 2020).

    `norm` makes each of the norms; with `after` there is another one behind attention and behind the feed-forward,
    before what they give is added, as in Gemma; without `before` none before attention, as where the embedding has just
    been normalised. `drop` is the dropout rate of what is added, `mlp_drop` that of the feed-forward (None: the same).
    `adapter`: see `add`.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: Callable[..., Any],
        norm: Callable[[], Any],
        *,
        drop: float = 0.0,
        mlp_drop: float | None = None,
        before: bool = True,
        after: bool = False,
    ):
        self.drop, self.mlp_drop = drop, drop if mlp_drop is None else mlp_drop
        self.attn_norm, self.attn = norm() if before else None, attn
        self.attn_after = norm() if after else None
        self.mlp_norm, self.mlp = norm(), mlp
        self.mlp_after = norm() if after else None
        self.adapter = nnx.data(None)

    def __call__(
        self, over_BMD: jax.Array, sight: Sight, key: jax.Array | None, at_BS: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """[B, M, D] -> [B, M, D], or [B, S, D] at the positions `at_BS` alone; and what the feed-forward left aside."""
        key_weights, key_attn, key_mlp = (None, None, None) if key is None else jax.random.split(key, 3)
        normed_BMD = _then(self.attn_norm, over_BMD)
        x_BLD, query_BLD = over_BMD, normed_BMD
        if at_BS is not None:
            x_BLD, query_BLD, sight = pick(over_BMD, at_BS), pick(normed_BMD, at_BS), sight.at(at_BS)
        mixed_BLD = self.attn(query_BLD, normed_BMD, sight, key_weights)
        x_BLD = x_BLD + dropout(_then(self.attn_after, mixed_BLD), self.drop, key_attn)
        fed_BLD, aside = self.feed(self.mlp_norm(x_BLD), sight)
        fed_BLD = dropout(_then(self.mlp_after, fed_BLD), self.mlp_drop, key_mlp)
        return add(x_BLD, fed_BLD, None, self.adapter), aside

    def feed(self, x_BLD: jax.Array, sight: Sight) -> tuple[jax.Array, Any]:
        """The feed-forward, and what it leaves aside for the network's own losses: of a dense one nothing."""
        return self.mlp(x_BLD), None


def add(x_BLD: jax.Array, fed_BLD: jax.Array, norm: Any, adapter: Any) -> jax.Array:
    """norm(x + fed), the end of a block that feeds `x` forward; `norm` None: none.

    `adapter`: what a method of jaxft.peft has put into the block; it is asked in the place of this.
    """
    return _then(norm, x_BLD + fed_BLD) if adapter is None else adapter(x_BLD, fed_BLD, norm)


def _then(norm: Any, x_BLD: jax.Array) -> jax.Array:
    return x_BLD if norm is None else norm(x_BLD)
