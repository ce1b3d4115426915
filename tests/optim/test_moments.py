"""Moments in fewer bits: what is lost, that training goes on as before, and where they live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import build, state
from jaxft.models import bert
from jaxft.optim import moments
from jaxft.optim.adamw import adamw
from jaxft.optim.lion import lion
from jaxft.registry import UserError
from tests import tiny

SHAPE = (20, 300)  # of the last dimension one block is whole and one is not
CODED = ("bfloat16", "8bit")


def spread(signed, seed=0):
    """Numbers of five decades."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SHAPE) * 10 ** rng.uniform(-5, 0, SHAPE)
    return jnp.asarray(x if signed else np.abs(x), jnp.float32)


def published(signed):
    """The numbers of the dynamic code, from their definition: the middles of the cells of each decade."""
    values = {0.0}
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values |= {*middles, *(-middles if signed else [])}
    return np.array(sorted(values))


@pytest.mark.parametrize("signed", [True, False])
def test_a_number_becomes_the_middle_of_its_cell_of_the_published_code(signed):
    x = spread(signed)
    codes, scales = moments.encode(x, signed)
    assert codes.shape == SHAPE and codes.dtype == (jnp.int8 if signed else jnp.uint8) and scales.shape == (20, 2)
    known, found = published(signed), np.asarray(moments.decode(codes, scales))
    for part, scale in ((np.s_[:, :256], scales[:, :1]), (np.s_[:, 256:], scales[:, 1:])):
        share, said = np.asarray(x[part] / scale), found[part] / np.asarray(scale)
        decade = np.clip(np.ceil(np.log10(np.abs(share) + 1e-12)), -6, 0)
        cell = 0.9 * 10**decade / 2 ** (decade + (6 if signed else 7))
        assert (np.abs(share - said) <= 0.51 * cell + (np.abs(share) < 1e-7) * 1e-7).all()
        assert np.abs(said[..., None] - known).min(-1).max() < 1e-6, "of the code, and no other number"
    again, _ = moments.encode(jnp.asarray(found), signed)
    assert (np.asarray(again) == np.asarray(codes)).mean() > 0.99


def test_nothing_stays_nothing_the_largest_is_exact_and_small_parameters_are_kept_whole():
    x = spread(False).at[3].set(0.0)
    found = moments.decode(*moments.encode(x, False))
    assert (found[3] == 0).all() and np.isfinite(found).all()
    for _ in range(100):  # it would shrink by a share of its cell every time
        found = moments.decode(*moments.encode(found, False))
    np.testing.assert_allclose(found[:, :256].max(1), x[:, :256].max(1), rtol=1e-5)
    small = jnp.ones((3, 5))
    codes, scales = moments.encode(small, True)
    assert codes.dtype == jnp.float32 and not scales.ndim and (moments.decode(codes, scales) == small).all()


def test_a_number_is_rounded_at_random_so_that_the_mean_is_right():
    x = jnp.full(40_000, 1 + 2**-9, jnp.float32)  # a quarter of the way from 1 to its neighbour
    found = np.asarray(moments.stochastic(-x, jax.random.key(0)), np.float32)
    assert set(np.unique(found)) == {-1.0, np.float32(-1 - 2**-7)}
    assert -found.mean() == pytest.approx(1 + 2**-9, abs=1e-4)
    exact = jnp.asarray([0.0, -2.0, 1.5, 3e-30], jnp.bfloat16).astype(jnp.float32)
    assert (moments.stochastic(exact, jax.random.key(1)) == exact).all()


@pytest.mark.parametrize("form", CODED)
def test_a_moment_that_moves_by_a_thousandth_a_step_moves(form):
    """Rounded to the nearest bfloat16, the second moment would stay where it is."""
    params = {"w": jnp.ones(SHAPE)}
    tx = moments.kept(optax.scale_by_adam(0.9, 0.999), form)
    held = tx.init(params)
    update = jax.jit(tx.update)
    for grad in [1.0] * 50 + [1e-3] * 700:
        _, held = update({"w": jnp.full(SHAPE, grad) * params["w"]}, held, params)
    nu = moments._decoded(held.nu)["w"] if form == "8bit" else held.nu["w"].astype(jnp.float32)
    assert float(nu.mean()) == pytest.approx((1 - 0.999**50) * 0.999**700, rel=0.03)


@pytest.mark.parametrize("form", CODED)
@pytest.mark.parametrize("made", [adamw, lion])
def test_training_ends_as_with_moments_in_float32(form, made):
    rng = np.random.default_rng(0)
    inputs, true = rng.normal(size=(512, 64)), rng.normal(size=(64, 80))
    targets = jnp.asarray(inputs @ true + 0.1 * rng.normal(size=(512, 80)), jnp.float32)
    inputs = jnp.asarray(inputs, jnp.float32)

    def loss(params):
        return jnp.square(inputs @ params["w"] - targets).mean()

    def ended(form):
        params = {"w": jnp.zeros((64, 80))}
        options = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "moments": form}
        options |= {"lr": 0.03, "eps": 1e-8} if made is adamw else {"lr": 0.01}
        given = {"decay_mask": {"w": True}, "multiplier": {"w": 1.0}}
        tx = made(**options, **given, schedule=lambda step: 1 - step / 400)
        held = tx.init(params)

        @jax.jit
        def go(params, held, step):
            updates, held = tx.update(jax.grad(loss)(params), held, params, step=step)
            return optax.apply_updates(params, updates), held

        for step in range(400):
            params, held = go(params, held, jnp.float32(step))
        return float(loss(params))

    assert ended(form) == pytest.approx(ended("float32"), rel=0.06)


@pytest.mark.parametrize("form, most", [("bfloat16", 4.01), ("8bit", 2.1)])
def test_the_state_is_as_small_as_promised_and_lives_where_the_parameters_do(form, most):
    c = tiny.config()
    cfg = dataclasses.replace(bert.TINY, vocab=512, d_model=128, d_ff=1024)
    mesh = tiny.mesh(8, data=2, fsdp=2, tensor=2)
    net = build.network(bert, cfg, head="sequence", outputs=2, model=c.model, rules=c.sharding, mesh=mesh)
    config = dataclasses.replace(c, optim={**c.optim, "moments": form})
    held = state.plan(net, config, state.schedule(config, total=10, warmup=1)).abstract
    leaves = jax.tree_util.tree_leaves_with_path(held.opt)
    size = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    count = sum(leaf.size for leaf in jax.tree.leaves(held.params))
    assert size < most * count
    where = {
        jax.tree_util.keystr(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(held.params)
    }
    kernels = [path for path, spec in where.items() if "mlp" in path and len(set(spec) - {None}) == 2]
    assert kernels
    for path in kernels:
        found = [leaf.sharding.spec for at, leaf in leaves if jax.tree_util.keystr(at).endswith(path) and leaf.ndim]
        assert len(found) == (4 if form == "8bit" else 2)
        assert found.count(where[path]) >= 2, "codes are shared out as the parameter is"
        assert all(spec[:-1] == where[path][:-1] for spec in found), "and so are their scales, but for what is left"


def test_a_form_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match=r"optim\.moments='int4' must be one of: float32, bfloat16, 8bit"):
        moments.kept(optax.scale_by_adam(), "int4")
