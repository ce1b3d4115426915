import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def seen(row, query, key, causal, window):
    """Which key a query sees, said once more: of places in one row."""
    if SEGMENT[row, query] != SEGMENT[row, key] or (causal and key > query):
        return False
    if not window:
        return True
    return query - key < window if causal else abs(query - key) <= window


SEEN = [(causal, window) for causal in (False, True) for window in (0, 1, 2, 4, L, 2 * L)]


@pytest.mark.parametrize(("causal", "window"), SEEN)
def test_a_window_ends_where_it_is_said_to(causal, window):
    mask_BLM = np.asarray(Where.within(jnp.asarray(SEGMENT), causal=causal, window=window).mask_BLM())
    for row, query, key in np.ndindex(B, L, L):
        assert mask_BLM[row, query, key] == seen(row, query, key, causal, window), (row, query, key)
    if window < 4:  # the edges themselves, in figures: query 5 of the second row, which is one text
        first, last = np.flatnonzero(mask_BLM[1, 5])[[0, -1]]
        assert (first, last) == {
            (False, 0): (0, 11),
            (False, 1): (4, 6),
            (False, 2): (3, 7),
            (True, 0): (0, 5),
            (True, 1): (5, 5),
            (True, 2): (4, 5),
        }[causal, window]


@pytest.mark.parametrize(("causal", "window"), SEEN)
def test_queries_at_a_few_places_see_what_they_see_among_all(causal, window):
    where = Where.within(jnp.asarray(SEGMENT), causal=causal, window=window)
    at_BS = jnp.asarray([[0, 4, 5, 11], [11, 0, 7, 7]])
    few = where.at(at_BS)
    whole_BLM = np.asarray(where.mask_BLM())
    np.testing.assert_array_equal(few.mask_BLM(), np.take_along_axis(whole_BLM, np.asarray(at_BS)[:, :, None], axis=1))
    np.testing.assert_array_equal(few.away(), np.broadcast_to(np.asarray(at_BS)[:, :, None] - np.arange(L), (B, 4, L)))


def test_weights_are_dropped_with_an_exact_expectation():
    """Of values that are all one, attention gives the sum of its weights."""
    q, k, _ = heads()
    one = jnp.ones((B, L, H, K))
    where = Where.within(jnp.asarray(SEGMENT))
    sums = [attention(q, k, one, where, 0.1, drop=0.25, key=jax.random.key(i)) for i in range(64)]
    np.testing.assert_allclose(np.mean(sums), 1, atol=0.02)
    assert np.std(sums) > 0.1
