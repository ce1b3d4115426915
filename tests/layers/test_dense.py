import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers.dense import affine
from jaxft.layers.sums import column_sum, outer_sum
from tests import tiny


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plain(x, kernel, bias):
    y = jnp.asarray(x) @ kernel
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


@pytest.mark.parametrize("leading", [(), (5,), (3, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_plain_formula(leading, with_bias):
    x, kernel, g = normal(*leading, 6), normal(6, 4), normal(*leading, 4, seed=1)
    bias = normal(4) if with_bias else None

    def run(function):
        y, pull = jax.vjp(function, x, kernel, bias)
        return y, pull(jnp.asarray(g))

    ours, expected = run(affine), run(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)


def test_gradients_keep_the_dtype_of_what_they_belong_to():
    x, kernel, bias = (jnp.asarray(normal(*s), jnp.bfloat16) for s in ((3, 6), (6, 4), (4,)))
    _, pull = jax.vjp(affine, x, kernel, bias)
    assert [g.dtype for g in pull(jnp.ones((3, 4), jnp.bfloat16))] == [jnp.bfloat16] * 3


def test_sums_over_sharded_rows_are_whole():
    rows = tiny.mesh(data=8)
    where = jax.sharding.NamedSharding(rows, jax.sharding.PartitionSpec("data"))
    x, y = normal(8, 5, 6), normal(8, 5, 4, seed=1)
    sums = jax.jit(lambda x, y: (column_sum(x), outer_sum(x, y)))(*jax.device_put((x, y), where))
    np.testing.assert_allclose(sums[0], x.sum((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums[1], np.einsum("bli,blo->io", x, y), rtol=1e-5, atol=1e-5)


def test_sums_of_bfloat16_columns_add_up_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    assert float(column_sum(jnp.ones((1000, 1), jnp.bfloat16))[0]) == 1000


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_every_platform_has_its_way(platform):
    def gradients(x, kernel, bias):
        return jax.grad(lambda *a: affine(*a).sum(), argnums=(0, 1, 2))(x, kernel, bias)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 3, 6), (6, 4), (4,))]
    text = jax.export.export(jax.jit(gradients), platforms=[platform])(*shapes).mlir_module()
    assert ("stablehlo.reduce" in text) == (platform != "cpu")
