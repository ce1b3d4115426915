import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.layers.dense import Dense, affine
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import REMAT, Execution, pick, run_stack, stack
from jaxft.planning import matmuls

N, D = 3, 4


class Block(nnx.Module):
    def __init__(self):
        self.dense = Dense(D, D, ("D", "HK"), Normal(1.0))

    def __call__(self, x, key):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape)
        return jnp.tanh(self.dense(x)) + noise


def parameters():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.standard_normal((N, D, D), np.float32)),
        "bias": jnp.asarray(rng.standard_normal((N, D), np.float32)),
    }


def run(params, x, key, how, at=None):
    structure, _ = nnx.split(stack(Block(), N))
    blocks = nnx.merge(structure, {"dense": params})
    asked = []

    def call(block, x, key, at, kind):
        asked.append(at is not None)
        return block(x if at is None else pick(x, at), key), None

    out, aside = run_stack(blocks, call, x, key, how, at, ["same"] * N)
    assert aside is None
    # Blocks that look alike are traced once.
    assert not any(asked[:-1]) and asked[-1] == (at is not None and not how.scan), "only the last one, unrolled"
    return out


def one_after_the_other(params, x, key):
    keys = [None] * N if key is None else jax.random.split(key, N)
    for i in range(N):
        x = jnp.tanh(x @ params["kernel"][i] + params["bias"][i][None, None])
        x = x if key is None else x + jax.random.normal(keys[i], x.shape)
    return x


def test_parameters_are_declared_with_a_leading_axis():
    kernel = stack(Block(), N).dense.kernel
    assert kernel.get_value().shape == (N, D, D)
    assert kernel.get_metadata("axes") == ("N", "D", "HK")


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["still", "random"])
@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scan"])
def test_values_and_gradients_are_those_of_the_blocks_in_turn(scan, remat, key):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, D), np.float32))

    def both(function):
        return jax.value_and_grad(lambda params: function(params).sum())(parameters())

    ours = both(lambda params: run(params, x, key, Execution(scan=scan, remat=remat)))
    expected = both(lambda params: one_after_the_other(params, x, key))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scan"])
def test_what_is_read_at_few_positions_is_what_stands_there(scan, remat):
    x_BLD = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, D), np.float32))
    at_BS, how = jnp.asarray([[0, 3, 0], [4, 2, 0]]), Execution(scan=scan, remat=remat)

    def both(read):
        return jax.value_and_grad(lambda params: (read(params) ** 2).sum())(parameters())

    ours = both(lambda params: run(params, x_BLD, None, how, at_BS))
    expected = both(lambda params: run(params, x_BLD, None, how)[jnp.arange(2)[:, None], at_BS])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    "kinds", [(1, 2) * 2, (1, 2, 3, 3), (1,) * 4, (1, 2) * 2 + (1,), (1, 1, 2) * 2 + (1, 1)], ids=str
)
def test_blocks_of_several_kinds_are_the_same_scanned_and_unrolled_and_what_they_leave_aside_adds_up(kinds, remat):
    """A scan takes as many blocks a turn as it takes until their kinds repeat, and unrolls what the last leaves."""
    structure, _ = nnx.split(stack(Block(), len(kinds)))
    params = jax.tree.map(lambda x: jnp.concatenate([x, x / 2, x * 2])[: len(kinds)], parameters())
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, D), np.float32))

    def call(block, x, key, at, kind):
        y = block(x if at is None else pick(x, at), key) * kind
        return y, {"sum": y.sum(), "blocks": 1}

    def result(scan):
        blocks = nnx.merge(structure, {"dense": params})
        return run_stack(blocks, call, x, None, Execution(scan=scan, remat=remat), at, kinds)

    expected, at = x, None
    for i, kind in enumerate(kinds):
        expected = jnp.tanh(expected @ params["kernel"][i] + params["bias"][i][None, None]) * kind
    for y, aside in (result(scan=False), result(scan=True)):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert aside["blocks"] == len(kinds)
    np.testing.assert_allclose(result(True)[1]["sum"], result(False)[1]["sum"], rtol=1e-5)
    at = jnp.asarray([[0, 3], [4, 2]])
    for y, _ in (result(scan=False), result(scan=True)):
        np.testing.assert_allclose(y, pick(expected, at), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kinds, traced",
    [((1,) * 7, 1), ((1, 1, 2) * 2, 3), ((1, 1, 2) * 2 + (1,), 4), ((1, 2, 3), 3), ((1, 1, 2, 2), 4)],
    ids=str,
)
def test_a_scan_traces_one_turn_and_what_is_left_after_the_last_whole_one(kinds, traced):
    structure, _ = nnx.split(stack(Block(), len(kinds)))
    seen = []

    def call(block, x, key, at, kind):
        seen.append(kind)
        return block(x, key), None

    def run(params):
        blocks = nnx.merge(structure, {"dense": params})
        return run_stack(blocks, call, jnp.ones((1, 2, D)), None, Execution(scan=True), None, kinds)[0]

    shape = {"kernel": (len(kinds), D, D), "bias": (len(kinds), D)}
    out = jax.eval_shape(run, {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in shape.items()})
    assert out.shape == (1, 2, D)
    assert len(seen) == traced


def test_dots_computes_no_product_of_a_kernel_again_and_full_does():
    x_BLD, in_DF, out_FD = jnp.ones((2, 8, 16)), jnp.ones((16, 32)), jnp.ones((32, 16))

    def layer(x_BLD, in_DF):
        return jnp.tanh(affine(jnp.tanh(affine(x_BLD, in_DF, None)), out_FD, None))

    def flops(policy):
        one = layer if policy is None else jax.checkpoint(layer, policy=policy)
        return matmuls.flops(lambda w: jax.grad(lambda w: one(x_BLD, w).sum())(w), in_DF, platform="cpu")[0]

    found = {name: flops(policy) for name, policy in REMAT.items()}
    assert found["none"] == found["dots"] < found["full"]
