import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.attention import Where, attention

B, L, H, K = 2, 12, 3, 4
SEGMENT = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], np.int32)


def heads():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((B, L, H, K), np.float32)) for _ in range(3))


def run(function):
    g = jnp.asarray(np.random.default_rng(1).standard_normal((B, L, H, K), np.float32))
    g = g * (SEGMENT > 0)[:, :, None, None]  # padding is read by nobody
    y, pull = jax.vjp(function, *heads())
    return y * (SEGMENT > 0)[:, :, None, None], pull(g)


def test_values_and_gradients_are_those_of_jax_attention_within_segments():
    def expected(q, k, v):
        mask = (SEGMENT[:, :, None] == SEGMENT[:, None, :])[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask), scale=0.3)

    ours = run(lambda q, k, v: attention(q, k, v, Where.within(jnp.asarray(SEGMENT)), 0.3))
    with jax.numpy_rank_promotion("allow"):
        theirs = run(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_a_segment_attends_as_if_it_were_alone():
    q, k, v = heads()
    packed = attention(q, k, v, Where.within(jnp.asarray(SEGMENT)), 0.5)[0, 5:9]
    alone = attention(*(x[:1, 5:9] for x in (q, k, v)), Where.within(jnp.ones((1, 4), jnp.int32)), 0.5)[0]
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-6)


def test_weights_are_dropped_with_an_exact_expectation():
    """Of values that are all one, attention gives the sum of its weights."""
    q, k, _ = heads()
    one = jnp.ones((B, L, H, K))
    where = Where.within(jnp.asarray(SEGMENT))
    sums = [attention(q, k, one, where, 0.1, drop=0.25, key=jax.random.key(i)) for i in range(64)]
    np.testing.assert_allclose(np.mean(sums), 1, atol=0.02)
    assert np.std(sums) > 0.1
