import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers.dropout import dropout
from tests import tiny

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_and_the_mean_stays(rate):
    x = jnp.ones((200, 500))
    y = np.asarray(dropout(x, rate, KEY))
    rounded = round(rate * 256) / 256
    deviation = (rounded * (1 - rounded) / x.size) ** 0.5  # of the share of zeros
    assert abs((y == 0).mean() - rounded) < 4 * deviation
    assert abs(y.mean() - 1) < 4 * deviation / (1 - rounded)
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rounded)], rtol=1e-6)


def test_neighbours_of_one_random_word_fall_alone():
    """Four elements share 32 random bits: their masks must not."""
    zero = np.asarray(dropout(jnp.ones((4000, 4)), 0.5, KEY)) == 0
    assert np.abs(np.corrcoef(zero.T) - np.eye(4)).max() < 0.08


@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_any_width_will_do(width):
    assert dropout(jnp.ones((5, width)), 0.5, KEY).shape == (5, width)


def test_masks_follow_the_key_and_not_the_mesh():
    x = jnp.ones((8, 16, 32))
    where = jax.sharding.NamedSharding(tiny.mesh(data=2, tensor=4), jax.sharding.PartitionSpec("data", None, "tensor"))
    masked = jax.jit(lambda x: dropout(x, 0.3, KEY))
    np.testing.assert_array_equal(masked(jax.device_put(x, where)), masked(x))
    assert not np.array_equal(dropout(x, 0.3, jax.random.key(1)), masked(x))


def test_evaluation_and_rate_zero_change_nothing():
    x = jnp.ones((4, 4))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_a_rate_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        dropout(jnp.ones(4), 1.0, KEY)
