"""The chunked computation against the dense one: values and gradients to 1e-5 in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import sharding
from jaxft.layers.attention import Where, dense
from jaxft.layers.dropout import dropout
from jaxft.layers.kernels import chunked
from tests import tiny
from tests.layers.kernels.rows import B, assert_equal, drawn, heads, run, segments, where_of

BLOCK = 16
CASES = {
    "both-ways": dict(L=50),
    "causal": dict(L=50, causal=True),
    "causal-window": dict(L=70, causal=True, window=10),
    "window": dict(L=70, window=7),
    "many-queries-a-key-head": dict(L=48, causal=True, G=1),
    "softcap": dict(L=50, causal=True, softcap=1.5),
    "bias": dict(L=50, causal=True, bias=1),
    "bias-of-each-row-under-a-cap": dict(L=35, bias=B, softcap=2.0),
    "few-queries": dict(L=9, M=50),
    "few-keys": dict(L=50, M=20),
    "one-block": dict(L=12, causal=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_dense_computation(case):
    case = {"M": case["L"], "causal": False, "window": 0, "G": 2, "softcap": 0.0, "bias": 0, **case}
    arrays = heads(case["L"], case["M"], G=case["G"])
    if case["bias"]:
        arrays += (drawn(case["bias"], 4, case["L"], case["M"], seed=4),)
    where = where_of(case["L"], case["M"], causal=case["causal"], window=case["window"])

    def by(compute, **options):
        def function(q, k, v, bias=None):
            return compute(q, k, v, where, softcap=case["softcap"], bias_BHLM=bias, **options)

        return run(function, where, *arrays)

    assert_equal(by(chunked.attend, block=BLOCK), by(dense))


def test_queries_at_chosen_places():
    q, k, v = heads(60)
    at_BS = jnp.asarray([[0, 59, 21, 7, 3], [40, 39, 38, 2, 59]])
    for how in (dict(causal=True), dict(causal=True, window=9), dict(window=9)):
        where = where_of(60, **how)
        some = jnp.take_along_axis(q, at_BS[:, :, None, None], 1)
        whole = dense(q, k, v, where)
        ours = chunked.attend(some, k, v, where.at(at_BS), block=BLOCK)
        np.testing.assert_allclose(ours, jnp.take_along_axis(whole, at_BS[:, :, None, None], 1), rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_no_key_gets_zeros_and_gives_finite_gradients():
    q, k, v = heads(40)
    where = Where(jnp.zeros((B, 40), jnp.int32), jnp.ones((B, 40), jnp.int32), causal=True)
    y, pull = jax.vjp(lambda *x: chunked.attend(*x, where, block=BLOCK), q, k, v)
    assert all((x == 0).all() for x in (y, *pull(jnp.ones_like(y))))


def test_rows_of_padding_alone_are_finite():
    where = Where.within(jnp.zeros((B, 40), jnp.int32), causal=True)
    y, pull = jax.vjp(lambda *x: chunked.attend(*x, where, block=BLOCK), *heads(40))
    assert all(np.isfinite(x).all() for x in (y, *pull(jnp.ones_like(y))))


def test_what_causality_and_windows_rule_out_is_not_computed():
    def visited(L, **how):
        where = where_of(L, **how)
        plan, given = chunked.laid_out(*heads(L), where, softcap=0.0, bias_BHLM=None, drop=0.0, key=None, block=BLOCK)
        (first, last), (begin, end) = chunked._visited(plan, given), chunked._seen(plan, given)
        seen = [list(range(a, b)) for a, b in zip(first, last, strict=True)]
        for j, (a, b) in enumerate(zip(begin, end, strict=True)):
            assert list(range(a, b)) == [i for i, columns in enumerate(seen) if j in columns], "backward as well"
        return seen

    assert visited(40) == [[0, 1, 2]] * 3
    assert visited(40, causal=True) == [[0], [0, 1], [0, 1, 2]]
    assert visited(64, causal=True, window=17) == [[0], [0, 1], [1, 2], [2, 3]]
    assert visited(64, causal=True, window=18) == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert visited(64, window=1) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]


def test_weights_are_dropped_alike_forward_and_backward_as_the_key_says():
    """The masks of all blocks, put together, dropped from dense weights."""
    L, rate, key = 48, 0.25, jax.random.key(3)
    q, k, v = heads(L, G=4)
    where = Where.within(jnp.ones((B, L), jnp.int32))

    def kept(i, j):
        own = jax.random.fold_in(jax.random.fold_in(key, i), j)
        return dropout(jnp.ones((B, 4, 1, BLOCK, BLOCK)), rate, own)[:, :, 0]

    kept_BHLM = jnp.block([[kept(i, j) for j in range(3)] for i in range(3)])

    def expected(q, k, v):
        weight_BHLM = jax.nn.softmax(jnp.einsum("BLHK,BMHK->BHLM", q, k), -1) * kept_BHLM
        return jnp.einsum("BHLM,BMHK->BLHK", weight_BHLM, v)

    ours = run(lambda *x: chunked.attend(*x, where, drop=rate, key=key, block=BLOCK), where, q, k, v)
    assert_equal(ours, run(expected, where, q, k, v))
    assert 0.2 < (kept_BHLM == 0).mean() < 0.3


def test_in_bfloat16_it_is_no_further_from_float32_than_the_dense_computation():
    where = where_of(64, causal=True)
    exact = run(lambda *x: dense(*x, where), where, *heads(64))
    low = [x.astype(jnp.bfloat16) for x in heads(64)]

    def error(compute):
        found = run(lambda *x: compute(*x, where).astype(jnp.float32), where, *low)
        return [
            float(jnp.abs(a - b).mean()) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        ]

    for ours, theirs in zip(error(chunked.attend), error(dense), strict=True):
        assert ours <= 1.2 * theirs


def test_devices_that_share_rows_and_heads_do_not_exchange_anything():
    on = tiny.mesh(fsdp=4, tensor=2)
    rules = {"B": ("data", "fsdp"), "H": "tensor", "G": "tensor"}
    shapes = [(4, 64, n, 8) for n in (4, 2, 2)]
    arrays = [
        jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=jax.sharding.NamedSharding(on, sharding.spec(shape, "BLHK", rules, on))
        )
        for shape in shapes
    ]
    segment_BL = jax.ShapeDtypeStruct((4, 64), jnp.int32, sharding=sharding.batch_sharding(on, rules))

    def loss(q, k, v, segment_BL):
        return chunked.attend(q, k, v, Where.within(segment_BL, causal=True), block=BLOCK).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays, segment_BL).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_at_16384_tokens_it_needs_less_than_a_twentieth_of_the_memory_of_the_dense_computation():
    """Compiled, not run: the dense one would need 40 GB."""
    L = 16384
    row = jax.ShapeDtypeStruct((1, L, 8, 64), jnp.float32)
    segment_BL = jax.ShapeDtypeStruct((1, L), jnp.int32)

    def needed(compute):
        def loss(q, k, v, segment_BL):
            return compute(q, k, v, Where.within(segment_BL, causal=True)).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(row, row, row, segment_BL).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(chunked.attend) < 0.05 * needed(dense)


def test_segments_of_the_tests_have_padding_between_them():
    assert [set(row) for row in segments(20).tolist()] == [{0, 1, 2}, {1}]
