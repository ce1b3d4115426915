"""Words are drawn where the sum of probabilities passes a point, block by block."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers.draw import drawn

B, L = 4, 50


@pytest.mark.parametrize("V", [7, 128, 1000, 4096], ids=lambda V: f"{V}-words")
def test_the_word_is_where_the_sum_of_all_before_passes_the_point(V):
    rng = np.random.default_rng(V)
    logits_BLV = rng.normal(size=(B, L, V)) * 3
    logits_BLV[..., V // 3 : V // 2] = -np.inf  # whole blocks of the large ones
    point_BL = rng.random((B, L))
    chance_BLV = np.exp(logits_BLV)
    upto_BLV = np.cumsum(chance_BLV / chance_BLV.sum(-1, keepdims=True), -1)
    found_BL = np.asarray(drawn(jnp.asarray(logits_BLV, jnp.float32), jnp.asarray(point_BL, jnp.float32)))
    assert found_BL.dtype == np.int32
    at_BL1 = found_BL[..., None]
    before_BL = (np.take_along_axis(upto_BLV - np.diff(upto_BLV, prepend=0), at_BL1, -1))[..., 0]
    until_BL = np.take_along_axis(upto_BLV, at_BL1, -1)[..., 0]
    assert (before_BL <= point_BL + 1e-5).all() and (point_BL < until_BL + 1e-5).all()
    assert np.isfinite(np.take_along_axis(logits_BLV, at_BL1, -1)).all()


def test_the_ends_are_words_that_can_be_drawn():
    logits_BLV = jnp.full((1, 2, 300), -jnp.inf).at[..., 5].set(0.0).at[..., 290].set(-1.0)
    assert drawn(logits_BLV, jnp.array([[0.0, 1.0]])).tolist() == [[5, 290]]
