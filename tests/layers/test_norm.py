import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxft.layers.norm import LayerNorm

EPS = 1e-5


def layer(d, bias=True):
    structure, _ = nnx.split(LayerNorm(d, EPS, bias))
    return lambda x, params: nnx.merge(structure, params)(x)


def parameters(d, bias=True):
    rng = np.random.default_rng(1)
    names = ("scale", "bias") if bias else ("scale",)
    return {name: jnp.asarray(rng.standard_normal(d, np.float32)) for name in names}


def plain(x, params):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + EPS) * params["scale"] + params.get("bias", 0.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(5,), (3, 7)], ids=str)
def test_values_and_gradients_are_those_of_the_plain_formula(bias, leading):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal((*leading, 16), np.float32))
    g = jnp.asarray(rng.standard_normal(x.shape, np.float32))

    def run(function):
        with jax.numpy_rank_promotion("allow"):
            y, pull = jax.vjp(function, x, parameters(16, bias))
            return y, pull(g)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(layer(16, bias)), run(plain))


def test_bfloat16_activations_are_normalised_in_float32():
    """Numbers that bfloat16 tells apart, but whose squares it does not sum."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 512)) + 20, jnp.bfloat16)
    params = {"scale": jnp.ones(512), "bias": jnp.zeros(512)}
    y = layer(512)(x, params)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), layer(512)(x.astype(jnp.float32), params), atol=0.02)
