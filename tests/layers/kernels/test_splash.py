"""The kernels for TPUs, interpreted on a CPU, against the dense computation.

Both add float32 products, in other orders: over 256 keys that is 16 roundings of 6e-8 in a random walk, 1e-6 of sums
of order 1. 1e-5 leaves room for the sums of gradients over queries and heads.
"""

import jax
import numpy as np
import pytest

from jaxft import sharding
from jaxft.layers.attention import dense
from jaxft.layers.kernels import splash
from tests import tiny
from tests.layers.kernels.rows import assert_equal, heads, run, where_of

LENGTH = 256
CASES = {
    "both-ways": {},
    "causal": dict(causal=True),
    "causal-window": dict(causal=True, window=40),
    "window": dict(window=40),
}


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_dense_computation(how):
    where, arrays = where_of(LENGTH, **how), heads(LENGTH)
    softcap = 1.5 if how == CASES["causal"] else 0.0
    ours = run(lambda *x: splash.attend(*x, where, softcap=softcap, interpret=True), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where, softcap=softcap), where, *arrays))


def test_from_one_sequence_to_another():
    where, arrays = where_of(128, LENGTH), heads(128, LENGTH, G=1)
    ours = run(lambda *x: splash.attend(*x, where, interpret=True), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where), where, *arrays))


@pytest.mark.parametrize("G", [1, 2])
def test_on_many_devices_each_computes_its_rows_and_heads(G):
    """Of fewer key heads than devices that share the heads, each is repeated."""
    where, arrays = where_of(128, causal=True), heads(128, G=G)

    def ours(*x):
        with sharding.activations(tiny.mesh(data=2, tensor=4), {"B": "data", "H": "tensor", "G": "tensor"}):
            return splash.attend(*x, where, interpret=True)

    assert jax.jit(ours)(*arrays).sharding.spec[0] == "data"
    assert_equal(run(ours, where, *arrays), run(lambda *x: dense(*x, where), where, *arrays))


def test_a_kernel_is_looked_up_rather_than_built_again():
    options = dict(causal=True, window=0, softcap=0.0, interpret=True)
    one, again = (splash._kernel(2, 128, 128, **options) for _ in range(2))
    assert one is again
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(one)), "it belongs to no trace"
