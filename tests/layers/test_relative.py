"""Distances in buckets, against transformers; and the bias that is made of them, at any places."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.layers.attention import Sight, Where
from jaxft.layers.parameter import Normal
from jaxft.layers.relative import RelativeBias, bucket

LENGTH, HEADS = 9, 2


def bias(causal):
    module = RelativeBias(HEADS, 8, 6, causal=causal, init=Normal(1.0))
    structure, _ = nnx.split(module)
    table = np.random.default_rng(0).normal(size=(8, HEADS)).astype(np.float32)
    return table, nnx.merge(structure, {"table": jnp.asarray(table)})(LENGTH)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (64, 256), (16, 50)])
def test_buckets_are_those_of_transformers(buckets, longest, causal):
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = np.arange(-3000, 3001)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(ahead), bidirectional=not causal, num_buckets=buckets, max_distance=longest
    )
    np.testing.assert_array_equal(bucket(ahead, buckets, longest, causal=causal), theirs.numpy())


@pytest.mark.parametrize("causal", [False, True])
def test_the_bias_of_two_tokens_is_that_of_their_distance(causal):
    table, found = bias(causal)
    assert found.shape == (1, HEADS, LENGTH, LENGTH)
    ahead = np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None]
    np.testing.assert_array_equal(found[0], table[bucket(ahead, 8, 6, causal=causal)].transpose(2, 0, 1))


def test_a_sight_at_few_places_keeps_the_bias_of_these():
    _, found = bias(causal=True)
    segment_BL = jnp.ones((2, LENGTH), jnp.int32)
    at_BS = jnp.asarray([[0, 8], [3, 5]])
    some = Sight(Where.within(segment_BL, causal=True), bias_BHLM=found).at(at_BS)
    assert some.bias_BHLM is not None
    for row in range(2):
        np.testing.assert_array_equal(some.bias_BHLM[row], found[0][:, at_BS[row]])
