"""Attention over a row and, beside it, over keys that every query of every text sees: a trained prefix.

The kernels of TPUs and GPUs know which keys a query sees by its segment, and by causality among places of one row: keys
that all segments see they cannot express, nor do all of them hand out the log-sum-exp of the scores, which would let
what they compute be joined with a part computed elsewhere. The chunked computation has both parts, as in the ring: each
is attended over alone, the two are joined by their log-sum-exps, and the backward pass goes over each with the whole's.
So no row is made longer, blocks of keys that causality rules out are left out, and a cache holds the text alone.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxft.layers.kernels import chunked
from jaxft.layers.kernels.chunked import Operands, Plan, mean_of

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

Part = tuple[jax.Array, jax.Array, "Where", Any]  # keys and values [B, M, G, K], who sees them, bias [B, H, L, M]


def attend(
    q_BLHK: jax.Array,
    row: Part,
    prefix: Part,
    *,
    softcap: float,
    drop: float,
    key: jax.Array | None,
    block: int,
) -> jax.Array:
    """softmax over the keys of both parts, [B, L, H, K], of queries that are scaled already."""
    keys = (None, None) if key is None else jax.random.split(key)
    plans, parts = [], []
    for (k_BMGK, v_BMGK, where, bias_BHLM), own in zip((row, prefix), keys, strict=True):
        plan, part = chunked.laid_out(
            q_BLHK, k_BMGK, v_BMGK, where, softcap=softcap, bias_BHLM=bias_BHLM, drop=drop, key=own, block=block
        )
        plans.append(plan)
        parts.append(part)
    return chunked.rows_of(_attend(tuple(plans), tuple(parts)), q_BLHK.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plans: tuple[Plan, ...], parts: tuple[Operands, ...]) -> jax.Array:
    return _joined(plans, parts)[0]


def _joined(plans: tuple[Plan, ...], parts: tuple[Operands, ...]) -> tuple[jax.Array, jax.Array]:
    (row_BGQLK, row_BGQL), (prefix_BGQLK, prefix_BGQL) = map(chunked.forward, plans, parts)
    lse_BGQL = jnp.logaddexp(row_BGQL, prefix_BGQL)
    shares = (jnp.exp(own - lse_BGQL)[..., None] for own in (row_BGQL, prefix_BGQL))
    out_BGQLK = sum(share * out for share, out in zip(shares, (row_BGQLK, prefix_BGQLK), strict=True))
    return jnp.asarray(out_BGQLK, parts[0].q_BGQLK.dtype), lse_BGQL


def _forward(plans: tuple[Plan, ...], parts: tuple[Operands, ...]) -> tuple[jax.Array, Any]:
    out_BGQLK, lse_BGQL = _joined(plans, parts)
    return out_BGQLK, (parts, out_BGQLK, lse_BGQL)


def _backward(plans: tuple[Plan, ...], saved: Any, grad_BGQLK: jax.Array) -> tuple[tuple[Operands, ...]]:
    parts, out_BGQLK, lse_BGQL = saved
    mean_BGQL = mean_of(grad_BGQLK, out_BGQLK)
    grads = []
    for plan, part in zip(plans, parts, strict=True):
        *dqkv, dbias = chunked.backward(plan, part, mean_BGQL, lse_BGQL, grad_BGQLK)
        dbias = None if part.bias_BGQLM is None else dbias.astype(part.bias_BGQLM.dtype)
        dq, dk, dv = (grad.astype(x.dtype) for grad, x in zip(dqkv, part[:3], strict=True))
        grads.append(Operands(dq, dk, dv, None, dbias, None, None))  # pyright: ignore[reportArgumentType]
    return (tuple(grads),)


_attend.defvjp(_forward, _backward)
