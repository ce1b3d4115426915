import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers.disentangled import Buckets, by_distance


@pytest.mark.parametrize(("half", "furthest"), [(256, 512), (16, 40), (5, 30), (32, 2048), (4, 8)])
def test_the_buckets_of_distances_are_those_of_transformers(half, furthest):
    torch = pytest.importorskip("torch", reason="the buckets are compared with those of transformers")
    from transformers.models.deberta_v2 import modeling_deberta_v2 as hub

    away = np.arange(-2 * furthest, 2 * furthest + 1)
    theirs = hub.make_log_bucket_position(torch.tensor(away), half, furthest).long().numpy()
    np.testing.assert_array_equal(Buckets(half, furthest).rows(away), np.clip(theirs + half, 0, 2 * half - 1))


def test_without_buckets_each_distance_has_a_row_and_far_ones_share_the_ends():
    rows = Buckets(3, 0).rows(np.arange(-5, 6))
    np.testing.assert_array_equal(rows, [0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 5])


def test_scores_of_distances_become_scores_of_places_for_a_row_and_for_a_few_places():
    B, H, L = 2, 3, 5
    score_BHXZ = jnp.asarray(np.random.default_rng(0).standard_normal((B, H, L, 2 * L), np.float32))
    z_LL = np.arange(L)[None] - np.arange(L)[:, None] + L
    expected = np.stack([score_BHXZ[:, :, x, z_LL[x]] for x in range(L)], 2)
    np.testing.assert_array_equal(by_distance(score_BHXZ, None), expected)
    at_BS = np.array([[4, 0], [2, 2]])
    some_BHSZ = jnp.take_along_axis(score_BHXZ, at_BS[:, None, :, None], axis=2)
    some = jax.jit(by_distance)(some_BHSZ, jnp.asarray(z_LL[at_BS]))
    for row, at_S in enumerate(at_BS):
        np.testing.assert_array_equal(some[row], expected[row][:, at_S])
