"""Attention in blocks of queries and keys: memory grows with the length, not with its square; on every platform.

Forward, each block of queries passes over its blocks of keys with a running maximum and a running sum (Milakov &
Gimelshein 2018). The log-sum-exp of each query is all that is kept, and the backward pass computes the weights again
from it (Dao 2023, algorithm 2). Blocks that causality or the window rule out as a whole are not computed, unless the
queries stand at chosen places. Of L queries and M keys, l and m are those of one block. Who attends over the keys in
several parts (layers/kernels/ring.py) does so by `laid_out`, `forward` and `backward`.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxft.layers.dropout import dropout

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

BLOCK = 256  # queries and keys of a block; a CPU is slower with 128 and with 512 (docs/results.md)
MASKED = -1e30  # finite, as in layers.attention
NOBODY = -1, -2  # segments of keys and of queries that only fill up a block: they see and are seen by nobody


@dataclass(frozen=True)
class Plan:
    """What is constant in the program."""

    block_l: int
    block_m: int
    softcap: float
    drop: float
    precision: Any  # the backward pass is traced where jax.default_matmul_precision has long been left

    def product(self, equation: str, *operands: jax.Array) -> jax.Array:
        options = dict(precision=self.precision, preferred_element_type=jnp.float32)
        return jnp.einsum(equation, *operands, **options)


class Operands(NamedTuple):
    """Queries and keys in whole blocks."""

    q_BGQLK: jax.Array
    k_BGMK: jax.Array
    v_BGMK: jax.Array
    where: "Where"  # its `at_BL` is there, and relative to the first of the keys
    bias_BGQLM: jax.Array | None
    key: jax.Array | None
    offset: Any  # query l stands where key l + offset does, int; None: queries stand at chosen places


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: "Where",
    *,
    softcap: float = 0.0,
    bias_BHLM: jax.Array | None = None,
    drop: float = 0.0,
    key: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """As layers.attention.attention, of queries that are scaled already. A query that sees no key gets zeros.

    Dropped weights are a function of `key` alone, but not those that the dense computation drops.
    """
    plan, given = laid_out(
        q_BLHK, k_BMGK, v_BMGK, where, softcap=softcap, bias_BHLM=bias_BHLM, drop=drop, key=key, block=block
    )
    return rows_of(_attend(plan, given), q_BLHK.shape[1])


def laid_out(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: "Where",
    *,
    softcap: float,
    bias_BHLM: jax.Array | None,
    drop: float,
    key: jax.Array | None,
    block: int,
) -> tuple[Plan, Operands]:
    """What is given to `attend`, in blocks of at most `block`."""
    L, (M, G) = q_BLHK.shape[1], k_BMGK.shape[1:3]
    block_l, block_m = min(block, L), min(block, M)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    plan = Plan(block_l, block_m, softcap, 0.0 if key is None else drop, precision)
    more_l, more_m = -L % block_l, -M % block_m
    at_BL = jnp.arange(L)[None] if where.at_BL is None else where.at_BL
    offset = jnp.zeros((), jnp.int32) if where.at_BL is None else None
    where = dataclasses.replace(
        where,
        query_BL=jnp.pad(where.query_BL, ((0, 0), (0, more_l)), constant_values=NOBODY[1]),
        key_BM=jnp.pad(where.key_BM, ((0, 0), (0, more_m)), constant_values=NOBODY[0]),
        at_BL=jnp.pad(at_BL, ((0, 0), (0, more_l))),
    )
    k_BGMK, v_BGMK = (jnp.moveaxis(jnp.pad(x, ((0, 0), (0, more_m), (0, 0), (0, 0))), 1, 2) for x in (k_BMGK, v_BMGK))
    if bias_BHLM is not None:
        bias_BHLM = jnp.pad(bias_BHLM, ((0, 0), (0, 0), (0, more_l), (0, more_m)))
        bias_BHLM = bias_BHLM.reshape(-1, G, bias_BHLM.shape[1] // G, *bias_BHLM.shape[2:])
    return plan, Operands(queries(q_BLHK, G, block_l), k_BGMK, v_BGMK, where, bias_BHLM, key, offset)


def queries(x_BLHK: jax.Array, G: int, block: int) -> jax.Array:
    """[B, L, H, K] -> [B, G, Q, L, K] with L filled up to whole blocks."""
    B, L, H, K = x_BLHK.shape
    x_BLHK = jnp.pad(x_BLHK, ((0, 0), (0, -L % block), (0, 0), (0, 0)))
    return jnp.moveaxis(x_BLHK.reshape(B, -1, G, H // G, K), 1, 3)


def rows_of(x_BGQLK: jax.Array, L: int) -> jax.Array:
    """The inverse, of the `L` that were there."""
    B, G, Q = x_BGQLK.shape[:3]
    return jnp.moveaxis(x_BGQLK, 3, 1)[:, :L].reshape(B, L, G * Q, -1)


def _visited(plan: Plan, given: Operands) -> tuple[jax.Array, jax.Array]:
    """The blocks of keys that each block of queries may see: first, and one past the last."""
    where, L, M = given.where, given.q_BGQLK.shape[3], given.k_BGMK.shape[2]
    start_l = jnp.arange(0, L, plan.block_l)
    low, high = jnp.zeros_like(start_l), jnp.full_like(start_l, M)
    if given.offset is not None:
        at_l = start_l + given.offset
        if where.causal:
            high = at_l + plan.block_l
            low = at_l - where.window + 1 if where.window else low
        elif where.window:
            low, high = at_l - where.window, at_l + plan.block_l + where.window
    return jnp.clip(low, 0, M) // plan.block_m, -(-jnp.clip(high, 0, M) // plan.block_m)


def _seen(plan: Plan, given: Operands) -> tuple[jax.Array, jax.Array]:
    """The blocks of queries that may see each block of keys, alike."""
    first, last = _visited(plan, given)
    column = jnp.arange(given.k_BGMK.shape[2] // plan.block_m)[None]
    sees = (first[:, None] <= column) & (column < last[:, None])
    return sees.argmax(0), sees.argmax(0) + sees.sum(0)  # they are neighbours


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, given: Operands) -> jax.Array:
    return forward(plan, given)[0].astype(given.q_BGQLK.dtype)


def _attend_forward(plan: Plan, given: Operands) -> tuple[jax.Array, Any]:
    out_BGQLK, lse_BGQL = forward(plan, given)
    out_BGQLK = out_BGQLK.astype(given.q_BGQLK.dtype)
    return out_BGQLK, (given, out_BGQLK, lse_BGQL)


def _attend_backward(plan: Plan, saved: Any, grad_BGQLK: jax.Array) -> tuple[Operands]:
    given, out_BGQLK, lse_BGQL = saved
    *grads, dbias = backward(plan, given, mean_of(grad_BGQLK, out_BGQLK), lse_BGQL, grad_BGQLK)
    dbias = None if given.bias_BGQLM is None else dbias.astype(given.bias_BGQLM.dtype)
    dq, dk, dv = (grad.astype(x.dtype) for grad, x in zip(grads, given[:3], strict=True))
    return (Operands(dq, dk, dv, None, dbias, None, None),)  # pyright: ignore[reportArgumentType]


_attend.defvjp(_attend_forward, _attend_backward)


def mean_of(grad_BGQLK: jax.Array, out_BGQLK: jax.Array) -> jax.Array:
    """What softmax subtracts from the gradient of a query's weights: their mean under the weights."""
    return (grad_BGQLK.astype(jnp.float32) * out_BGQLK.astype(jnp.float32)).sum(-1)


def forward(plan: Plan, given: Operands) -> tuple[jax.Array, jax.Array]:
    """(values [B, G, Q, L, K], log-sum-exp of the scores [B, G, Q, L]) in float32.

    Of a query that sees no key they are 0 and MASKED, or less than half of that.
    """
    q_BGQLK, _, v_BGMK, *_ = given
    first, last = _visited(plan, given)

    def of_queries(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_BGQlK = _rows(q_BGQLK, i, plan.block_l)
        top_BGQl = jnp.full(q_BGQlK.shape[:-1], MASKED, jnp.float32)
        sum_BGQlK = jnp.zeros((*q_BGQlK.shape[:-1], v_BGMK.shape[-1]), jnp.float32)

        def over_keys(j: jax.Array, carry: Any) -> Any:
            top_BGQl, total_BGQl, sum_BGQlK = carry
            score_BGQlm, _ = _scores(plan, i, j, q_BGQlK, given)
            higher_BGQl = jnp.maximum(top_BGQl, score_BGQlm.max(-1))
            weight_BGQlm = jnp.exp(score_BGQlm - higher_BGQl[..., None])
            shrink_BGQl = jnp.exp(top_BGQl - higher_BGQl)
            total_BGQl = total_BGQl * shrink_BGQl + weight_BGQlm.sum(-1)
            kept_BGQlm = _dropped(plan, weight_BGQlm, i, j, given.key).astype(v_BGMK.dtype)
            more_BGQlK = plan.product("BGQlm,BGmK->BGQlK", kept_BGQlm, _rows(v_BGMK, j, plan.block_m))
            return higher_BGQl, total_BGQl, sum_BGQlK * shrink_BGQl[..., None] + more_BGQlK

        start = (top_BGQl, jnp.zeros_like(top_BGQl), sum_BGQlK)
        top_BGQl, total_BGQl, sum_BGQlK = jax.lax.fori_loop(first[i], last[i], over_keys, start)
        blind_BGQl = top_BGQl <= MASKED / 2
        out_BGQlK = jnp.where(blind_BGQl[..., None], 0, sum_BGQlK / total_BGQl[..., None])
        return out_BGQlK, jnp.where(blind_BGQl, MASKED, top_BGQl + jnp.log(total_BGQl))

    out, lse = jax.lax.map(of_queries, jnp.arange(len(first)))
    return _joined(out, 3), _joined(lse, 3)


def backward(
    plan: Plan, given: Operands, mean_BGQL: jax.Array, lse_BGQL: jax.Array, grad_BGQLK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Gradients of queries, keys, values and bias in float32, as far as they come of these keys.

    `mean_BGQL` and `lse_BGQL` are over all keys that the queries see, here and elsewhere.
    """
    q_BGQLK, k_BGMK, v_BGMK, _, bias, key, _ = given
    # Of a query that sees no key every weight is 0, also when it is computed again.
    lse_BGQL = jnp.where(lse_BGQL <= MASKED / 2, -MASKED, lse_BGQL)
    first, last = _seen(plan, given)

    def of_keys(carry: Any, j: jax.Array) -> Any:
        k_BGmK, v_BGmK = _rows(k_BGMK, j, plan.block_m), _rows(v_BGMK, j, plan.block_m)

        def over_queries(i: jax.Array, carry: Any) -> Any:
            dq_BGQLK, dbias, dk_BGmK, dv_BGmK = carry
            q_BGQlK, grad_BGQlK = (_rows(x, i, plan.block_l) for x in (q_BGQLK, grad_BGQLK))
            lse_BGQl, mean_BGQl = (_rows(x[..., None], i, plan.block_l) for x in (lse_BGQL, mean_BGQL))
            score_BGQlm, slope_BGQlm = _scores(plan, i, j, q_BGQlK, given)
            weight_BGQlm = jnp.exp(score_BGQlm - lse_BGQl)
            kept_BGQlm = _dropped(plan, weight_BGQlm, i, j, key).astype(v_BGMK.dtype)
            dv_BGmK += plan.product("BGQlm,BGQlK->BGmK", kept_BGQlm, grad_BGQlK)
            dkept_BGQlm = plan.product("BGQlK,BGmK->BGQlm", grad_BGQlK, v_BGmK)
            dscore_BGQlm = weight_BGQlm * (_dropped(plan, dkept_BGQlm, i, j, key) - mean_BGQl)
            dbias = _add_bias(plan, dbias, dscore_BGQlm, i, j)
            dscore_BGQlm = (dscore_BGQlm if slope_BGQlm is None else dscore_BGQlm * slope_BGQlm).astype(q_BGQLK.dtype)
            dk_BGmK += plan.product("BGQlm,BGQlK->BGmK", dscore_BGQlm, q_BGQlK)
            dq_BGQlK = plan.product("BGQlm,BGmK->BGQlK", dscore_BGQlm, k_BGmK)
            return _add_rows(dq_BGQLK, dq_BGQlK, i, plan.block_l), dbias, dk_BGmK, dv_BGmK

        start = (*carry, *(jnp.zeros(x.shape, jnp.float32) for x in (k_BGmK, v_BGmK)))
        dq_BGQLK, dbias, dk_BGmK, dv_BGmK = jax.lax.fori_loop(first[j], last[j], over_queries, start)
        return (dq_BGQLK, dbias), (dk_BGmK, dv_BGmK)

    start: Any = (jnp.zeros(q_BGQLK.shape, jnp.float32), None if bias is None else jnp.zeros(bias.shape, jnp.float32))
    (dq_BGQLK, dbias), (dk, dv) = jax.lax.scan(of_keys, start, jnp.arange(len(first)))
    return dq_BGQLK, _joined(dk, 2), _joined(dv, 2), dbias


def _scores(
    plan: Plan, i: jax.Array, j: jax.Array, q_BGQlK: jax.Array, given: Operands
) -> tuple[jax.Array, jax.Array | None]:
    """The masked scores of one block in float32, and what the cap multiplies their gradient by."""
    where, at_l, at_m = given.where, i * plan.block_l, j * plan.block_m
    score_BGQlm = plan.product("BGQlK,BGmK->BGQlm", q_BGQlK, _rows(given.k_BGMK, j, plan.block_m))
    slope_BGQlm = None
    if plan.softcap:
        bounded_BGQlm = jnp.tanh(score_BGQlm / plan.softcap)
        score_BGQlm, slope_BGQlm = plan.softcap * bounded_BGQlm, 1 - jnp.square(bounded_BGQlm)
    if given.bias_BGQLM is not None:
        bias_BGQlm = jax.lax.dynamic_slice_in_dim(_rows(given.bias_BGQLM, i, plan.block_l), at_m, plan.block_m, axis=-1)
        score_BGQlm += bias_BGQlm.astype(jnp.float32)
    assert where.at_BL is not None
    part = dataclasses.replace(
        where,
        query_BL=jax.lax.dynamic_slice_in_dim(where.query_BL, at_l, plan.block_l, axis=1),
        key_BM=jax.lax.dynamic_slice_in_dim(where.key_BM, at_m, plan.block_m, axis=1),
        at_BL=jax.lax.dynamic_slice_in_dim(where.at_BL, at_l, plan.block_l, axis=1) - at_m,
    )
    return jnp.where(part.mask_BLM()[:, None, None], score_BGQlm, MASKED), slope_BGQlm


def _dropped(plan: Plan, x_BGQlm: jax.Array, i: jax.Array, j: jax.Array, key: jax.Array | None) -> jax.Array:
    """The same elements of a block are dropped wherever this is called."""
    if key is None or not plan.drop:
        return x_BGQlm
    return dropout(x_BGQlm, plan.drop, jax.random.fold_in(jax.random.fold_in(key, i), j))


def _rows(x: jax.Array, i: jax.Array, block: int) -> jax.Array:
    """Block i of the second last axis."""
    return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=-2)


def _add_rows(x: jax.Array, more: jax.Array, i: jax.Array, block: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, _rows(x, i, block) + more, i * block, axis=x.ndim - 2)


def _add_bias(plan: Plan, dbias: jax.Array | None, dscore_BGQlm: jax.Array, i: jax.Array, j: jax.Array) -> Any:
    if dbias is None:
        return None
    if dbias.shape[0] == 1:
        dscore_BGQlm = dscore_BGQlm.sum(0, keepdims=True)
    at = (0, 0, 0, i * plan.block_l, j * plan.block_m)
    old_BGQlm = jax.lax.dynamic_slice(dbias, at, dscore_BGQlm.shape)
    return jax.lax.dynamic_update_slice(dbias, old_BGQlm + dscore_BGQlm, at)


def _joined(blocks: jax.Array, axis: int) -> jax.Array:
    """[blocks, ..., l, ...] -> [..., L, ...] with L at `axis`."""
    x = jnp.moveaxis(blocks, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
