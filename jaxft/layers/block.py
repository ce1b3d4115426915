"""The encoder block of BERT and of those after it: layer norm after each residual."""

import jax
from flax import nnx

from jaxft.layers.attention import SelfAttention, Where
from jaxft.layers.dropout import dropout
from jaxft.layers.mlp import Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Init
from jaxft.layers.stack import pick


class PostNormBlock(nnx.Module):
    """Attention and feed-forward, each: dropout, add, norm (Vaswani et al. 2017, section 3.1)."""

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
    ):
        self.drop = dropout
        self.attn = SelfAttention(d_model, heads, init, attention_dropout)
        self.attn_norm = LayerNorm(d_model, eps)
        self.mlp = Mlp(d_model, d_ff, act, init)
        self.mlp_norm = LayerNorm(d_model, eps)

    def __call__(
        self, over_BMD: jax.Array, where: Where, key: jax.Array | None, at_BS: jax.Array | None = None
    ) -> jax.Array:
        """[B, M, D] -> [B, M, D], or [B, S, D] at the positions `at_BS` alone."""
        key_weights, key_attn, key_mlp = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BLD, where = (over_BMD, where) if at_BS is None else (pick(over_BMD, at_BS), where.at(at_BS))
        x_BLD = self.attn_norm(x_BLD + dropout(self.attn(x_BLD, over_BMD, where, key_weights), self.drop, key_attn))
        return self.mlp_norm(x_BLD + dropout(self.mlp(x_BLD), self.drop, key_mlp))
