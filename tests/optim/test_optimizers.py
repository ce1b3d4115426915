"""Optimizers against optax and torch, with decay masks and multipliers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft.optim import masks
from jaxft.optim.adafactor import adafactor
from jaxft.optim.adamw import adamw
from jaxft.optim.lion import lion
from jaxft.optim.schedules import linear
from jaxft.optim.sgd import sgd
from jaxft.registry import UserError

STEPS = 12
SCHEDULE = functools.partial(linear, total=STEPS, warmup=3, floor=0.1)
ADAMW = {"lr": 3e-2, "b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.3}


def params():
    rng = np.random.default_rng(0)
    shapes = {
        "head": {"kernel": (4, 3), "bias": (3,)},
        "embed": {"word": {"table": (7, 4)}},
        "blocks": {"mlp": {"kernel": (2, 4, 4)}},
    }
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params())


def given(tree, multiplier=None):
    ones = jax.tree.map(lambda _: 1.0, tree)
    return {"schedule": SCHEDULE, "decay_mask": masks.decay_mask(tree), "multiplier": multiplier or ones}


def run(tx, params, steps=range(STEPS)):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in steps:
        updates, state = update(gradients(step), state, params, step=jnp.int32(step))
        params = optax.apply_updates(params, updates)
    return params, state


def run_optax(tx, params):
    state = tx.init(params)
    for step in range(STEPS):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda **kw: adamw(**ADAMW, **kw),
            lambda mask: optax.adamw(lambda c: 3e-2 * SCHEDULE(c), 0.9, 0.99, 1e-6, weight_decay=0.3, mask=mask),
        ),
        (
            lambda **kw: lion(lr=3e-2, b1=0.9, b2=0.99, weight_decay=0.3, **kw),
            lambda mask: optax.lion(lambda c: 3e-2 * SCHEDULE(c), 0.9, 0.99, weight_decay=0.3, mask=mask),
        ),
        (
            lambda **kw: sgd(lr=3e-2, momentum=0.9, nesterov=True, weight_decay=0.0, **kw),
            lambda mask: optax.sgd(lambda c: 3e-2 * SCHEDULE(c), 0.9, nesterov=True),
        ),
    ],
    ids=["adamw", "lion", "sgd"],
)
def test_equals_optax_with_schedule_and_mask(ours, theirs):
    start = params()
    assert_close(run(ours(**given(start)), start)[0], run_optax(theirs(masks.decay_mask(start)), start))


def test_adamw_equals_torch_with_groups_and_a_rate_per_layer():
    torch = pytest.importorskip("torch", reason="torch.optim.AdamW is the reference here")
    start = params()
    multiplier = masks.layerwise(start, 0.5)
    ours, _ = run(adamw(**ADAMW, **given(start, multiplier)), start)
    # torch has no rate per row: a stacked block becomes one parameter per layer.
    parts = [
        (path, i, array)
        for path, leaf in zip(masks.paths(start), jax.tree.leaves(start), strict=True)
        for i, array in enumerate(leaf if path.startswith("blocks") else [leaf])
    ]
    decays = dict(zip(masks.paths(start), jax.tree.leaves(masks.decay_mask(start)), strict=True))
    rates = dict(zip(masks.paths(start), jax.tree.leaves(multiplier), strict=True))
    tensors = [torch.nn.Parameter(torch.tensor(np.asarray(array))) for _, _, array in parts]
    peaks = [ADAMW["lr"] * float(np.ravel(rates[path])[i]) for path, i, _ in parts]
    groups = [
        {"params": [tensor], "weight_decay": ADAMW["weight_decay"] * decays[path]}
        for tensor, (path, _, _) in zip(tensors, parts, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-6)
    for step in range(STEPS):
        grads = dict(zip(masks.paths(start), jax.tree.leaves(gradients(step)), strict=True))
        for tensor, group, peak, (path, i, _) in zip(tensors, optimizer.param_groups, peaks, parts, strict=True):
            group["lr"] = peak * float(SCHEDULE(step))
            tensor.grad = torch.tensor(np.asarray(grads[path][i] if path.startswith("blocks") else grads[path]))
        optimizer.step()
    flat = dict(zip(masks.paths(start), jax.tree.leaves(ours), strict=True))
    for tensor, (path, i, _) in zip(tensors, parts, strict=True):
        expected = tensor.detach().numpy()
        actual = flat[path][i] if path.startswith("blocks") else flat[path]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_adafactor_equals_transformers_layer_by_layer():
    """Of stacked layers every one has its own statistics, whose means a stack must not share."""
    torch = pytest.importorskip("torch", reason="transformers' Adafactor is the reference here")
    from transformers.optimization import Adafactor

    rng = np.random.default_rng(0)
    shapes = {
        "head/kernel": (130, 128),
        "blocks/kernel": (2, 128, 140),
        "blocks/bias": (2, 8),
        "decoder/blocks/k": (3, 5),
    }
    arrays = {path: rng.normal(size=shape, scale=[0.1, 3, 9][len(path) % 3]) for path, shape in shapes.items()}
    tree = unflatten_dict({path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}, sep="/")
    tx = adafactor(lr=0.02, decay=0.8, clip=1.0, relative=True, momentum=0.0, weight_decay=0.0, **given(tree))
    tensors = {
        (path, i): torch.nn.Parameter(torch.tensor(np.float32(part)))
        for path, array in arrays.items()
        for i, part in enumerate(array if "blocks" in path else [array])
    }
    theirs = Adafactor(tensors.values(), lr=1.0, scale_parameter=True, relative_step=False, warmup_init=False)
    state, update = tx.init(tree), jax.jit(tx.update)
    for step in range(6):
        grads = {path: np.float32(rng.normal(size=a.shape) * (1 + 9 * (step == 3))) for path, a in arrays.items()}
        updates, state = update(unflatten_dict(grads, sep="/"), state, tree, step=jnp.int32(step))
        tree = optax.apply_updates(tree, updates)
        for (path, i), tensor in tensors.items():
            tensor.grad = torch.tensor(grads[path][i] if "blocks" in path else grads[path])
        for group in theirs.param_groups:
            group["lr"] = 0.02 * float(SCHEDULE(step))
        theirs.step()
    flat = flatten_dict(tree, sep="/")
    for (path, i), tensor in tensors.items():
        found = flat[path][i] if "blocks" in path else flat[path]
        np.testing.assert_allclose(found, tensor.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=path)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < 0.03 * sum(array.size for array in arrays.values())


def test_a_skipped_update_shifts_neither_schedule_nor_bias_correction():
    """Steps 0 and 2 alone: rates of steps 0 and 2, bias correction of the first and second update."""
    start = params()
    _, state = run(adamw(**ADAMW, **given(start)), start, steps=[0, 2])
    assert [int(leaf) for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) == 0] == [2]
    updates, _ = adamw(**ADAMW | {"weight_decay": 0.0}, **given(start)).update(
        gradients(2), adamw(**ADAMW, **given(start)).init(start), start, step=2
    )
    # The first applied update of Adam moves every coordinate by the rate, whenever it comes.
    rate = ADAMW["lr"] * float(SCHEDULE(2))
    np.testing.assert_allclose(np.abs(updates["head"]["kernel"]), rate, rtol=1e-3)


def test_no_decay_exempts_paths():
    start = params()
    tx = adamw(**ADAMW, no_decay=("embed/.*",), **given(start))
    still = jax.tree.map(jnp.zeros_like, start)
    updates, _ = tx.update(still, tx.init(start), start, step=3)
    assert (updates["embed"]["word"]["table"] == 0).all() and (updates["head"]["bias"] == 0).all()
    np.testing.assert_allclose(updates["head"]["kernel"], -3e-2 * 0.3 * start["head"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"optim\.lr=0\.0 must be above 0"),
        ({"lr": float("nan")}, r"optim\.lr=nan"),
        ({"b2": 1.0}, r"optim\.b2=1\.0"),
        ({"eps": 0.0}, r"optim\.eps=0\.0"),
        ({"weight_decay": -1.0}, r"optim\.weight_decay=-1\.0"),
        ({"no_decay": ("embd/.*",)}, r"optim\.no_decay: 'embd/\.\*' matches no parameter"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        adamw(**ADAMW | options, **given(params()))
