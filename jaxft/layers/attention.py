"""Attention: one function, who computes it, and the projections around it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.cache import Memory, Pair
from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.kernels import choice, chunked, cudnn, ring, splash
from jaxft.layers.parameter import Init
from jaxft.layers.rope import Rotary
from jaxft.sharding import constrain

# Finite, so that a fully masked row is a uniform average rather than NaN.
MASKED = -1e30


@dataclass(frozen=True)
class Where:
    """Which query may attend to which key: a description, not a dense mask, so that a kernel can use it.

    A query sees a key of the same segment. Segment 0 is padding: it sees only padding and is seen by nobody else.
    `causal`: and none that comes later in the row. `window` > 0: and only near ones, causally the last `window` tokens
    with itself among them, else up to `window` tokens away on either side. The tokens of a segment are neighbours, so
    that distances within it are those of their places in the row.
    """

    query_BL: jax.Array  # segment of each query
    key_BM: jax.Array  # segment of each key
    at_BL: jax.Array | None = None  # place of each query among the keys; None: query l stands where key l does
    causal: bool = False
    window: int = 0

    @classmethod
    def within(cls, segment_BL: jax.Array, *, causal: bool = False, window: int = 0) -> Self:
        """Every token asks, and is asked within its segment."""
        return cls(segment_BL, segment_BL, None, causal, window)

    def at(self, position_BS: jax.Array) -> Self:
        """The same for the queries at these places alone."""
        query_BS = jnp.take_along_axis(self.query_BL, position_BS, axis=1)
        return dataclasses.replace(self, query_BL=query_BS, at_BL=position_BS)

    def mask_BLM(self) -> jax.Array:
        same_BLM = self.query_BL[:, :, None] == self.key_BM[:, None, :]
        if not self.causal and not self.window:
            return same_BLM
        return same_BLM & self._near(self.away())

    def away(self) -> jax.Array:
        """How far before each query each key stands, int32 [B or 1, L, M]; negative: behind it."""
        at_BL = jnp.arange(self.query_BL.shape[1])[None] if self.at_BL is None else self.at_BL
        return at_BL[:, :, None] - jnp.arange(self.key_BM.shape[1])[None, None, :]

    def position_BL(self) -> jax.Array:
        """How many tokens of its own segment each query has before it."""
        at_BL = jnp.arange(self.query_BL.shape[1])[None] if self.at_BL is None else self.at_BL
        return at_BL - (self.query_BL[:, :, None] == self.key_BM[:, None, :]).argmax(-1)

    def _near(self, away: jax.Array) -> jax.Array:
        if not self.causal:
            return jnp.abs(away) <= self.window
        return (away >= 0) & (away < self.window) if self.window else away >= 0


jax.tree_util.register_dataclass(Where, data_fields=["query_BL", "key_BM", "at_BL"], meta_fields=["causal", "window"])


@dataclass(frozen=True)
class Sight:
    """All that one layer is told of the rows: which keys are seen, how positions turn them, what is added to scores."""

    where: Where
    rotary: Rotary | None = None
    bias_BHLM: jax.Array | None = None  # B may be 1
    prefix_BHLM: jax.Array | None = None  # what is added to the scores of M virtual tokens before each text
    scale: float = 1.0  # of the layer's scores, beside that of its module
    memory: Memory | None = None  # where keys and values are kept; `where` tells of all of them, `rotary` of new ones

    def at(self, position_BS: jax.Array) -> Self:
        """The same for the queries at these places alone."""
        at_BHS = position_BS[:, None, :, None]
        picked = {
            name: None if bias is None else jnp.take_along_axis(bias, at_BHS, axis=2)
            for name, bias in (("bias_BHLM", self.bias_BHLM), ("prefix_BHLM", self.prefix_BHLM))
        }
        return dataclasses.replace(self, where=self.where.at(position_BS), **picked)


def attention(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: Where,
    scale: float,
    *,
    softcap: float = 0.0,
    bias_BHLM: jax.Array | None = None,
    drop: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T * scale + bias) v over the keys that `where` allows, [B, L, H, K]; softmax in float32.

    Of G < H key heads each serves H / G query heads in turn (Ainslie et al. 2023). `softcap` > 0 bounds the scores by
    cap * tanh(score / cap), as Gemma 2 has it. `drop` is the dropout rate of the attention weights, as BERT has it;
    which are dropped depends on `key` and on the implementation. layers.kernels.choice says who computes it.
    Source: Vaswani et al. 2017, eq. 1.
    """
    dropped = key is not None and drop > 0
    call = choice.Call.of(q_BLHK, k_BMGK, v_BMGK, where, softcap, bias_BHLM is not None, dropped)
    q_BLHK = q_BLHK * jnp.asarray(scale, q_BLHK.dtype)
    match choice.choose(choice.wish(), call):
        case "ring":
            size = choice.block(choice.wish(), call)
            return ring.attend(q_BLHK, k_BMGK, v_BMGK, where, softcap=softcap, drop=drop, key=key, block=size)
        case "splash":
            return splash.attend(q_BLHK, k_BMGK, v_BMGK, where, softcap=softcap)
        case "cudnn":
            return cudnn.attend(q_BLHK, k_BMGK, v_BMGK, where)
        case "chunked":
            compute = chunked.attend
        case _:
            compute = dense
    return compute(q_BLHK, k_BMGK, v_BMGK, where, softcap=softcap, bias_BHLM=bias_BHLM, drop=drop, key=key)


def dense(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: Where,
    *,
    softcap: float = 0.0,
    bias_BHLM: jax.Array | None = None,
    drop: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """`attention` with all scores at once, of queries that are scaled already."""
    B, L, H, K = q_BLHK.shape
    G = k_BMGK.shape[2]
    q_BLGQK = q_BLHK.reshape(B, L, G, H // G, K)
    score_BGQLM = jnp.einsum("BLGQK,BMGK->BGQLM", q_BLGQK, k_BMGK).astype(jnp.float32)
    if softcap:
        score_BGQLM = softcap * jnp.tanh(score_BGQLM / softcap)
    if bias_BHLM is not None:
        score_BGQLM += bias_BHLM.astype(jnp.float32).reshape(-1, G, H // G, *bias_BHLM.shape[2:])
    masked_BGQLM = jnp.where(where.mask_BLM()[:, None, None], score_BGQLM, MASKED)
    weight_BGQLM = dropout(jax.nn.softmax(masked_BGQLM, axis=-1).astype(v_BMGK.dtype), drop, key)
    return jnp.einsum("BGQLM,BMGK->BLGQK", weight_BGQLM, v_BMGK).reshape(B, L, H, -1)


class Attention(nnx.Module):
    """Query, key, value and output projections around `attention`; self-attention, or over another sequence.

    `kv_heads` None: as many as `heads`; `head_dim` None: d_model / heads; `scale` None: head_dim ** -0.5; `out_bias`
    and `out_init` None: as `bias` and `init`, `q_init` too. `q_norm` and `k_norm` normalise each head before it is
    turned.

    `adapter`: what a method of jaxft.peft has put here; it is asked in the place of `attention`.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        init: Init,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        out_init: Init | None = None,
        scale: float | None = None,
        softcap: float = 0.0,
        drop: float = 0.0,
        q_init: Init | None = None,
        q_norm: nnx.Module | None = None,
        k_norm: nnx.Module | None = None,
    ):
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or d_model // heads
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.softcap, self.drop = softcap, drop
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q = Dense(d_model, wide, ("D", "HK"), q_init or init, bias)
        self.k = Dense(d_model, narrow, ("D", "GK"), init, bias)
        self.v = Dense(d_model, narrow, ("D", "GK"), init, bias)
        self.out = Dense(wide, d_model, ("HK", "D"), out_init or init, bias if out_bias is None else out_bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.adapter: Any = nnx.data(None)

    def __call__(self, x_BLD: jax.Array, over_BMD: jax.Array, sight: Sight, key: jax.Array | None) -> jax.Array:
        """Queries of `x_BLD` over keys and values of `over_BMD`, [B, L, D]."""
        q_BLHK = _normed(self.q_norm, self._heads(self.q(x_BLD), self.heads, "BLHK"))
        if sight.memory is None:
            k_BMGK, v_BMGK = self._keys(over_BMD, sight)
        else:
            k_BMGK, v_BMGK = sight.memory.with_new(lambda: self._keys(over_BMD, sight))
        if sight.rotary is not None:
            at_BL = None if sight.memory is not None else sight.where.at_BL
            q_BLHK = (sight.rotary if at_BL is None else sight.rotary.at(at_BL))(q_BLHK)
        scale, bias_BHLM = self.scale * sight.scale, self.bias(q_BLHK, k_BMGK, sight, key)
        options: dict[str, Any] = dict(softcap=self.softcap, bias_BHLM=bias_BHLM, drop=self.drop, key=key)
        if self.adapter is None:
            mixed_BLHK = attention(q_BLHK, k_BMGK, v_BMGK, sight.where, scale, **options)
        else:
            mixed_BLHK = self.adapter(q_BLHK, k_BMGK, v_BMGK, sight, scale, **options)
        return constrain(self.out(mixed_BLHK.reshape(*x_BLD.shape[:2], -1)), "BLD")

    def _keys(self, over_BMD: jax.Array, sight: Sight) -> Pair:
        # Of a row that is asked, too, the tokens are where the rule of L has them.
        k_BMGK = _normed(self.k_norm, self._heads(self.k(over_BMD), self.kv_heads, "BLGK"))
        v_BMGK = self._heads(self.v(over_BMD), self.kv_heads, "BLGK")
        return k_BMGK if sight.rotary is None else sight.rotary(k_BMGK), v_BMGK

    def bias(self, q_BLHK: jax.Array, k_BMGK: jax.Array, sight: Sight, key: jax.Array | None) -> jax.Array | None:
        """What is added to the scores, [B or 1, H, L, M]."""
        return sight.bias_BHLM

    def _heads(self, x_BLF: jax.Array, heads: int, letters: str) -> jax.Array:
        """[B, L, heads * K] -> [B, L, heads, K]."""
        return constrain(x_BLF.reshape(*x_BLF.shape[:2], heads, self.head_dim), letters)


def _normed(norm: Any, x_BLHK: jax.Array) -> jax.Array:
    return x_BLHK if norm is None else norm(x_BLHK)
