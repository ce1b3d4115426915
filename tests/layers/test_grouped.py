import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers import grouped as layer
from jaxft.layers.grouped import BLOCK, grouped, grouped_frozen

ROWS, IN, OUT = 2 * BLOCK + 50, 16, 24
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # sums of 300 products
SIZES = [(3, 0, BLOCK + 9, 0, 10), (0, 0, 0, 0, ROWS), (0, 0, 0, 0, 0), (BLOCK, BLOCK, 50, 0, 0), (1, 1, 1, 1, 1)]


def arrays():
    rng = np.random.default_rng(0)
    shapes = (ROWS, IN), (len(SIZES[0]), IN, OUT), (ROWS, OUT)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_each_row_meets_the_kernel_of_its_group_and_so_do_gradients(sizes):
    x, kernel, g = arrays()
    y, pull = jax.vjp(lambda x, kernel: grouped(x, kernel, jnp.asarray(sizes)), x, kernel)
    dx, dkernel = pull(g)
    groups = np.split(np.arange(ROWS), np.cumsum(sizes))
    expected = np.zeros_like(y), np.zeros_like(x), np.zeros_like(kernel)
    for e, rows in enumerate(groups[:-1]):  # what is behind the last group belongs to none
        expected[0][rows], expected[1][rows] = x[rows] @ kernel[e], g[rows] @ kernel[e].T
        expected[2][e] = x[rows].T @ g[rows]
    for found, wanted in zip((y, dx, dkernel), expected, strict=True):
        np.testing.assert_allclose(found, wanted, **TOLERANCE)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_blocks_of_cpus_are_what_xla_makes_of_ragged_products(sizes):
    x, kernel, g = arrays()
    sizes = jnp.asarray(sizes)
    rows = [f(x, kernel, sizes) for f in (layer._rows_in_blocks, layer._rows_by_xla)]
    outer = [f(x, g, sizes) for f in (layer._outer_in_blocks, layer._outer_by_xla)]
    for ours, theirs in (rows, outer):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def test_kernels_that_stay_pass_the_same_gradient_on_and_get_none():
    rng = np.random.default_rng(0)
    x_JI = jnp.asarray(rng.standard_normal((12, 6)), jnp.float32)
    kernel_EIO = jnp.asarray(rng.standard_normal((3, 6, 5)), jnp.float32)
    sizes_E = jnp.asarray([5, 0, 4], jnp.int32)

    def gradients(f):
        return jax.grad(lambda x, kernel: jnp.sin(f(x, kernel, sizes_E)).sum(), (0, 1))(x_JI, kernel_EIO)

    (x, kernel), (want, _) = gradients(grouped_frozen), gradients(grouped)
    assert np.allclose(x, want, atol=1e-6) and not np.asarray(kernel).any()
