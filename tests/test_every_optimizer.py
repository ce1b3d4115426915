"""What holds for every registered optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.optim import OPTIMIZERS, masks
from jaxft.registry import UserError, call

OPTIONS = {
    "adafactor": {"lr": 0.1, "decay": 0.8, "clip": 1.0, "relative": False, "momentum": 0.0, "weight_decay": 0.01},
    "adamw": {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    "lion": {"lr": 0.03, "b1": 0.9, "b2": 0.99, "weight_decay": 0.01},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01},
}


def make(name, params, multiplier=1.0, factor=lambda step: jnp.float32(1)):
    return call(
        OPTIMIZERS,
        {"name": name, **OPTIONS[name]},
        "optim",
        schedule=factor,
        decay_mask=masks.decay_mask(params),
        multiplier=jax.tree.map(lambda _: multiplier, params),
    )


def start(dtype=jnp.float32):
    return {"embed": {"table": jnp.full((4, 3), 2, dtype)}, "head": {"bias": jnp.full((3,), -1, dtype)}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_minimises_a_bowl_in_one_compilation(name):
    def loss(params):
        return sum(jnp.square(x - 0.5).sum() for x in jax.tree.leaves(params))

    params = start()
    tx = make(name, params, factor=lambda step: 1 - step / 200)
    state, traces, first = tx.init(params), [], loss(params)

    @jax.jit
    def train_step(params, state, step):
        traces.append(step)
        updates, state = tx.update(jax.grad(loss)(params), state, params, step=step)
        return optax.apply_updates(params, updates), state

    for step in range(200):
        params, state = train_step(params, state, jnp.int32(step))
    assert loss(params) < 0.01 * first
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_and_state_keep_the_dtype_of_the_parameters(name, dtype):
    params = start(dtype)
    tx = make(name, params)
    before = tx.init(params)
    updates, after = tx.update(params, before, params, step=jnp.int32(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_scales_with_multiplier_and_schedule(name):
    params = start()
    full, slow, late = (
        tx.update(params, tx.init(params), params, step=jnp.int32(0))[0]
        for tx in (
            make(name, params),
            make(name, params, multiplier=0.25),
            make(name, params, factor=lambda step: 0.25),
        )
    )
    for a, b, c in zip(*map(jax.tree.leaves, (full, slow, late)), strict=True):
        np.testing.assert_allclose(a * 0.25, b, rtol=1e-6)
        np.testing.assert_allclose(b, c, rtol=1e-6)
        assert (a != 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_typo_in_an_option_is_answered_with_the_right_name(name):
    params = start()
    with pytest.raises(UserError, match=r"optim\.weight_decy is not an option.*weight_decay"):
        call(
            OPTIMIZERS,
            {"name": name, **OPTIONS[name], "weight_decy": 1.0},
            "optim",
            schedule=0,
            decay_mask=params,
            multiplier=params,
        )
