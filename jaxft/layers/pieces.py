"""A loss over a vocabulary, and its gradients, of some tokens at a time: no more than a piece's logits are ever held.

What is made of the logits is said by `how`, constants of the program that can be hashed: `how.softcap`, and
how(logits_BLV, aim, more) -> (loss_BL, hits_BL) of a piece (layers/vocab.py). `aim` [B, L, ...] is what each token's
loss is made with, `more` what that of all is: nothing, or (table, bias) of a teacher.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxft import sharding
from jaxft.layers import shares
from jaxft.layers.sums import outer_sum
from jaxft.sharding import constrain

PIECE = 2**23  # logits that one device holds at a time: 32 MB of float32


def logits(x_BLD: jax.Array, table_VD: jax.Array, bias_V: jax.Array | None, softcap: float) -> jax.Array:
    """float32 [B, L, V]: x table^T + bias, capped where `softcap` is not 0."""
    logits_BLV = _product(x_BLD, table_VD)
    if bias_V is not None:
        logits_BLV += bias_V.astype(jnp.float32).reshape(1, 1, -1)
    return softcap * jnp.tanh(logits_BLV / softcap) if softcap else logits_BLV


def whole_rows(table_VD: jax.Array, dtype: Any) -> jax.Array:
    """Gathered where their columns are shared out, once for all pieces."""
    return constrain(table_VD.astype(dtype), "V_")


@jax.custom_vjp
def _product(x_BLD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """x table^T in float32, of factors in less; their gradients are products of factors in less again."""
    return jnp.matmul(x_BLD, table_VD.T, preferred_element_type=jnp.float32)


def _product_forward(x_BLD: jax.Array, table_VD: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x_BLD, table_VD), (x_BLD, table_VD)


def _product_backward(saved: Any, g_BLV: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BLD, table_VD = saved
    g_BLV = g_BLV.astype(x_BLD.dtype)
    return g_BLV @ table_VD, outer_sum(g_BLV, x_BLD).astype(table_VD.dtype)


_product.defvjp(_product_forward, _product_backward)


def losses(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> tuple[jax.Array, jax.Array]:
    """(loss, hits) of each token of a piece by its weight; what has none adds 0 to every gradient."""
    x_BLD = jnp.where((weights_BL > 0)[..., None], x_BLD, 0)
    logits_BLV = constrain(logits(x_BLD, table_VD, bias_V, how.softcap), "BLV")
    loss_BL, hits_BL = how(logits_BLV, aim, more)
    return loss_BL * weights_BL, jax.lax.stop_gradient(hits_BL * weights_BL)


def _loss(how: Any, *piece: Any) -> tuple[jax.Array, jax.Array]:
    """(summed loss, summed hits) of a piece."""
    loss_BL, hits_BL = losses(how, *piece)
    return loss_BL.sum(), hits_BL.sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> Any:
    """(summed loss, summed hits) of the whole, piece by piece along L.

    The gradients of a piece are computed with its loss, while its logits are there; the backward pass only multiplies
    them by that of the sum.
    """
    table_VD = whole_rows(table_VD, x_BLD.dtype)

    def add(total: Any, piece: Any) -> tuple[Any, None]:
        x, weights, aim = piece
        return jax.tree.map(jnp.add, total, _loss(how, x, table_VD, bias_V, weights, aim, more)), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), cut(_words(table_VD, more), x_BLD, weights_BL, aim))[0]


def _words(table_VD: jax.Array, more: Any) -> int:
    """Logits of a token that are there at a time: of the table, and of the teacher's."""
    return table_VD.shape[0] + (more[0].shape[0] if more else 0)


def _summed_forward(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    words_VD = whole_rows(table_VD, x_BLD.dtype)

    def of_rows(x: jax.Array, weights: jax.Array, aim: Any) -> Any:
        loss, pull, hits = jax.vjp(
            lambda x, words, bias: _loss(how, x, words, bias, weights, aim, more), x, words_VD, bias_V, has_aux=True
        )
        return (loss, hits), *pull(jnp.ones_like(loss))

    pieces = cut(_words(table_VD, more), x_BLD, weights_BL, aim)
    tokens = pieces[0].shape[1:3]
    P, axes = shares.count(tokens)

    def apart(totals: Any) -> Any:
        # Those of each device's tokens meet once, after the last piece, and are not sent after each.
        return jax.tree.map(lambda x: shares.constrain(x, "V_"[: x.ndim - 1], axes), totals)

    def add(total: Any, piece: Any) -> tuple[Any, jax.Array]:
        sums, g_x, *g_words = shares.apart(of_rows, *piece)
        new = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (sums, *g_words))
        return apart(new), shares.joined(g_x, tokens)

    zero = jnp.zeros((), jnp.float32)
    start = jax.tree.map(lambda like: jnp.zeros((P, *like.shape), jnp.float32), ((zero, zero), table_VD, bias_V))
    totals, g_NBLD = jax.lax.scan(add, apart(start), pieces)
    sums, g_table_VD, g_bias_V = jax.tree.map(lambda total: total.sum(0), totals)
    g_BLD = joined(g_NBLD, x_BLD.shape[1])
    like = jax.tree.map(lambda leaf: jnp.zeros((0,), leaf.dtype), (x_BLD, table_VD, bias_V))
    return sums, ((g_BLD, g_table_VD, g_bias_V), like)


def _summed_backward(how: Any, saved: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    grads, like = saved
    scaled = jax.tree.map(lambda grad, leaf: (grad * given[0].astype(grad.dtype)).astype(leaf.dtype), grads, like)
    return (*scaled, None, None, None)


summed.defvjp(_summed_forward, _summed_backward)


def cut(words: int, *arrays_BL: jax.Array) -> Any:
    """The arrays [B, L, ...] cut along L, [N, B, L / N, ...], filled up by 0.

    `words` are the logits of a token: those of a piece fit. Where rows are cut over devices, every device gives its
    share of every piece, so that none has to give its tokens away.
    """
    B, L = arrays_BL[0].shape[:2]
    active, own = sharding.active(), _own(B, L)
    shared = L // own
    shared *= 1 if active is None else sharding.batch_shards(active.mesh, active.rules)
    shared *= 1 if active is None else sharding.pieces("V", active.rules, active.mesh)
    n = min(own, -(-B * L * words // (PIECE * shared)))
    size = -(-own // n)
    n = -(-own // size)

    def pieces_of(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        rows = array.reshape(B, L // own, own, *rest)
        padded = jnp.pad(rows, ((0, 0), (0, 0), (0, n * size - own), *[(0, 0)] * len(rest)))
        pieces = jnp.moveaxis(padded.reshape(B, L // own, n, size, *rest), 2, 0).reshape(n, B, -1, *rest)
        return constrain(pieces, "_BLD"[: pieces.ndim])

    return tuple(map(pieces_of, arrays_BL))


def joined(pieces_NBL: jax.Array, length: int) -> jax.Array:
    """The inverse: [N, B, L / N, ...] -> [B, length, ...]."""
    n, B, _, *rest = pieces_NBL.shape
    own = _own(B, length)
    shares = jnp.moveaxis(pieces_NBL.reshape(n, B, length // own, -1, *rest), 0, 2)
    return shares.reshape(B, length // own, -1, *rest)[:, :, :own].reshape(B, length, *rest)


def _own(B: int, L: int) -> int:
    """Tokens of a row of `L` that a device has."""
    return L // sharding.shards((B, L), "BL")[1]
