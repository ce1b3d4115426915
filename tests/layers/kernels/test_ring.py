"""Attention over rows that are cut over devices, against the dense computation on one: to 1e-5 in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxft import sharding
from jaxft.layers.attention import Where, attention, dense
from jaxft.layers.kernels import choice, chunked, ring
from tests import tiny
from tests.layers.kernels.rows import B, assert_equal, heads, run, where_of

RULES = {"B": ("data", "fsdp"), "L": "context", "H": "tensor", "G": "tensor"}
MESHES = [dict(context=2, fsdp=2, tensor=2), dict(context=4, data=2)]
LENGTH = 48


def on(sizes, compute, **options):
    """`compute` on a mesh."""
    mesh = tiny.mesh(int(np.prod(list(sizes.values()))), **sizes)

    def function(*x):
        with sharding.activations(mesh, RULES):
            return compute(*x, **options)

    return function


@pytest.mark.parametrize(("sizes", "softcap"), [(MESHES[0], 0.0), (MESHES[1], 1.5)], ids=str)
@pytest.mark.parametrize("window", [0, 5, 13])
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients_are_those_of_one_device(sizes, softcap, causal, window):
    """Rows of segments that the cuts go through; two or four query heads a key head."""
    where, arrays = where_of(LENGTH, causal=causal, window=window), heads(LENGTH, G=1 if softcap else 2)
    ours = run(on(sizes, ring.attend, where=where, softcap=softcap, block=8), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where, softcap=softcap), where, *arrays))


@pytest.mark.parametrize(
    ("sizes", "how"), [(MESHES[0], dict(causal=True)), (MESHES[1], dict(causal=True, window=9))], ids=str
)
def test_queries_at_chosen_places_ask_all_devices(sizes, how):
    q, k, v = heads(LENGTH)
    at_BS = jnp.asarray([[0, 47, 21, 7, 3], [40, 39, 38, 2, 44]])
    some, where = jnp.take_along_axis(q, at_BS[:, :, None, None], 1), where_of(LENGTH, **how).at(at_BS)
    ours = run(on(sizes, ring.attend, where=where, block=8), where, some, k, v)
    assert_equal(ours, run(lambda *x: dense(*x, where), where, some, k, v))


def test_from_one_sequence_to_another():
    where, arrays = where_of(24, LENGTH), heads(24, LENGTH)
    ours = run(on(MESHES[0], ring.attend, where=where, block=8), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where), where, *arrays))


def test_lengths_that_no_block_divides_and_fewer_key_heads_than_devices_that_share_them():
    where, arrays = where_of(38, causal=True), heads(38, G=2)
    ours = run(on(dict(context=2, tensor=4), ring.attend, where=where, block=8), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where), where, *arrays))


def test_a_query_that_sees_no_key_gets_zeros_and_gives_finite_gradients():
    where = Where(jnp.zeros((B, LENGTH), jnp.int32), jnp.ones((B, LENGTH), jnp.int32), causal=True)
    y, pull = jax.vjp(on(MESHES[1], ring.attend, where=where), *heads(LENGTH))
    assert all((x == 0).all() for x in (y, *pull(jnp.ones_like(y))))


def test_weights_are_dropped_alike_forward_and_backward_and_otherwise_on_each_device():
    """Of values that are a unit matrix the results are the weights; all are equal where queries are 0."""
    rate, key = 0.25, jax.random.key(0)
    q, k, _ = heads(LENGTH, H=2, G=2)
    v = jnp.broadcast_to(jnp.eye(LENGTH)[None, :, None], (B, LENGTH, 2, LENGTH))
    where = Where.within(jnp.ones((B, LENGTH), jnp.int32))
    attend = jax.jit(on(MESHES[0], ring.attend, where=where, drop=rate, key=key, block=8))
    kept = np.asarray(attend(0 * q, k, v)) * LENGTH
    assert set(np.unique(kept.round(4))) == {0.0, np.float32(round(1 / (1 - rate), 4))}
    assert 0.2 < (kept == 0).mean() < 0.3
    pieces = [row[half : half + 24, head] for row in kept for half in (0, 24) for head in (0, 1)]
    pieces = [piece[:, half : half + 24] for piece in pieces for half in (0, 24)]
    assert all((a != b).any() for i, a in enumerate(pieces) for b in pieces[:i])
    y, pull = jax.vjp(lambda v: attend(q, k, v), v)
    given = jax.random.normal(key, y.shape)
    np.testing.assert_allclose((pull(given)[0] * v).sum(), (given * y).sum(), rtol=1e-5)  # linear in the values
    direction = jax.random.normal(jax.random.key(1), q.shape)
    slope = (jax.grad(lambda q: (attend(q, k, v) * given).sum())(q) * direction).sum()
    ends = [(attend(q + step * direction, k, v) * given).sum() for step in (-1e-2, 1e-2)]
    np.testing.assert_allclose((ends[1] - ends[0]) / 2e-2, slope, rtol=1e-2)


def test_in_bfloat16_it_is_no_further_from_float32_than_the_dense_computation():
    where = where_of(LENGTH, causal=True)
    exact = run(lambda *x: dense(*x, where), where, *heads(LENGTH))
    low = [x.astype(jnp.bfloat16) for x in heads(LENGTH)]

    def error(compute):
        found = run(lambda *x: compute(*x, where).astype(jnp.float32), where, *low)
        return [
            float(jnp.abs(a - b).mean()) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        ]

    for ours, theirs in zip(error(on(MESHES[1], ring.attend)), error(dense), strict=True):
        assert ours <= 1.2 * theirs


def test_with_a_window_keys_travel_no_further_than_it_reaches():
    def journey(size, **how):
        return ring._journey(where_of(LENGTH, **how), LENGTH // size, size)

    assert journey(8) == journey(8, causal=True) == (0, 8)
    assert journey(8, causal=True, window=1) == (0, 1)
    assert journey(8, causal=True, window=7) == (0, 2)
    assert journey(8, causal=True, window=8) == (0, 3)
    assert journey(8, window=6) == (1, 3)
    assert journey(8, window=7) == (2, 5)
    assert journey(4, window=13) == (0, 4), "once around is enough"


def compiled(size, L):
    """Gradients of causal attention over one row of `L` tokens that `size` devices share."""
    shape = (1, L, 8, 64)
    mesh = tiny.mesh(size, context=size)
    cut = NamedSharding(mesh, sharding.spec(shape, "BLHK", RULES, mesh))
    row = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=cut)

    def loss(q, k, v):
        with sharding.activations(mesh, RULES), choice.wished("chunked"):
            return attention(q, k, v, Where.within(jnp.ones((1, L), jnp.int32), causal=True), 1.0).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(row, row, row).compile()


def test_memory_is_that_of_a_piece_and_no_device_gathers_the_keys_of_a_row():
    """Compiled, not run: 16,384 tokens."""
    needed = {}
    for size in (1, 2, 4, 8):
        program = compiled(size, 16384)
        needed[size] = program.memory_analysis().temp_size_in_bytes
        names = set(re.findall(r"\b(all-gather|all-to-all|collective-permute)\b", program.as_text()))
        assert names == ({"collective-permute"} if size > 1 else set())
    assert needed[8] < 0.6 * needed[4] < 0.6**2 * needed[2], "but for what is on its way it is that of a piece"
    assert needed[4] < 0.65 * needed[1], needed


def test_the_mesh_decides_that_there_is_a_ring_and_the_wish_how_each_turn_is_computed():
    where, arrays = where_of(LENGTH, causal=True), heads(LENGTH)

    def lowered(wish, *, bias=None, x=arrays, where=where, **sizes):
        with choice.wished(wish):
            return jax.jit(on(sizes, attention, where=where, scale=0.3, bias_BHLM=bias)).lower(*x).as_text()

    for wish in ("auto", "dense", "chunked"):
        assert "collective_permute" in lowered(wish, context=2), wish
        assert "collective_permute" not in lowered(wish, data=2), wish
    assert f"x{LENGTH // 2}x{LENGTH // 2}xf32" in lowered("dense", context=2)
    assert "collective_permute" not in lowered("auto", context=2, bias=jnp.zeros((1, 4, LENGTH, LENGTH)))
    odd = LENGTH - 1
    assert "collective_permute" not in lowered("auto", context=2, x=heads(odd), where=where_of(odd))
    assert chunked.BLOCK < 512 == choice.block("auto", choice.Call(choice.Machine("cpu"), "", 1024, 1024, 8, 8, cut=2))
