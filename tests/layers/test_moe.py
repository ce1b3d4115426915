import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxft import sharding
from jaxft.layers.moe import Moe, router_losses
from jaxft.layers.parameter import Normal
from tests import tiny

D, F, EXPERTS, CHOSEN = 16, 24, 8, 2
ROWS, LENGTH = 8, 10
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32; never loosened


def layer(renormalise=True, chosen=CHOSEN):
    """(params, x, real) -> (y, aside)"""
    module = Moe(D, F, experts=EXPERTS, chosen=chosen, renormalise=renormalise, act="silu", init=Normal(1.0))
    structure, _ = nnx.split(module)
    return lambda params, x, real: nnx.merge(structure, params)(x, real)


def arrays(only=()):
    """Parameters, vectors and which of them are tokens; with `only` every token chooses these experts."""
    rng = np.random.default_rng(0)
    shapes = {"router": (D, EXPERTS), "gate": (EXPERTS, D, F), "up": (EXPERTS, D, F), "down": (EXPERTS, F, D)}
    params = {name: {"kernel": 0.3 * rng.standard_normal(shape).astype(np.float32)} for name, shape in shapes.items()}
    x = rng.standard_normal((ROWS, LENGTH, D)).astype(np.float32)
    if only:
        x[..., 0] = 1.0
        params["router"]["kernel"][0, list(only)] += 8.0
    real = np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (ROWS, 1))
    return jax.tree.map(jnp.asarray, (params, x, real))


def one_after_the_other(params, x, real, renormalise=True, chosen=CHOSEN):
    """The same, expert by expert, in float64."""
    kernels = {name: np.asarray(kernel["kernel"], np.float64) for name, kernel in params.items()}
    x, y = np.asarray(x, np.float64), np.zeros(x.shape)
    logits = x @ kernels["router"]
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counts = np.zeros(EXPERTS)
    for at in np.ndindex(x.shape[:2]):
        if not real[at]:
            continue
        experts = np.argsort(-share[at])[:chosen]
        total = share[at][experts].sum() if renormalise else 1.0
        for e in experts:
            gate, up = x[at] @ kernels["gate"][e], x[at] @ kernels["up"][e]
            y[at] += share[at][e] / total * ((gate / (1 + np.exp(-gate)) * up) @ kernels["down"][e])
            counts[e] += 1
    return y, share, counts, np.log(np.exp(logits).sum(-1))


@pytest.mark.parametrize("chosen", [1, 2, EXPERTS])
@pytest.mark.parametrize("renormalise", [True, False])
def test_values_are_those_of_a_loop_over_experts(renormalise, chosen):
    params, x, real = arrays()
    y, aside = jax.jit(layer(renormalise, chosen))(params, x, real)
    expected, share, counts, logsumexp = one_after_the_other(params, x, real, renormalise, chosen)
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert not np.any(y[~real]), "what is no token gets nothing"
    assert aside["tokens"] == real.sum()
    np.testing.assert_array_equal(aside["chosen_E"], counts)
    np.testing.assert_allclose(aside["share_E"], share[real].sum(0), **TOLERANCE)
    np.testing.assert_allclose(aside["square"], np.square(logsumexp[np.asarray(real)]).sum(), **TOLERANCE)


@pytest.mark.parametrize("only", [(5, 2), (0, 1), (6, 7)], ids=str)
def test_experts_that_nobody_or_everybody_chooses(only):
    params, x, real = arrays(only)

    def total(params):
        return (layer()(params, x, real)[0] ** 2).sum()

    y, aside = jax.jit(layer())(params, x, real)
    np.testing.assert_array_equal(np.flatnonzero(aside["chosen_E"]), sorted(only))
    np.testing.assert_allclose(y, one_after_the_other(params, x, real)[0], **TOLERANCE)
    for name, grad in flatten_dict(jax.jit(jax.grad(total))(params)).items():
        if name[0] != "router":
            assert {e for e in range(EXPERTS) if np.any(grad[e])} == set(only), "no token, no gradient"


def test_gradients_are_those_of_all_experts_on_all_tokens():
    params, x, real = arrays()
    g = jax.random.normal(jax.random.key(1), x.shape)

    def dense(params, x):
        kernels = {name: kernel["kernel"] for name, kernel in params.items()}
        share = jax.nn.softmax(x @ kernels["router"])
        top = jax.lax.top_k(share, CHOSEN)[0]
        weight = jnp.where(share >= top[..., -1:], share, 0) * real[..., None] / top.sum(-1, keepdims=True)
        gate, up = (jnp.einsum("BLD,EDF->BLEF", x, kernels[name]) for name in ("gate", "up"))
        return jnp.einsum("BLEF,EFD,BLE->BLD", jax.nn.silu(gate) * up, kernels["down"], weight)

    found = jax.jit(jax.grad(lambda p, x: (layer()(p, x, real)[0] * g).sum(), argnums=(0, 1)))(params, x)
    expected = jax.jit(jax.grad(lambda p, x: (dense(p, x) * g).sum(), argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


def test_what_is_no_token_changes_no_bit_of_those_that_are():
    params, x, real = arrays()
    run = jax.jit(layer())
    (y, aside), (other, other_aside) = (run(params, jnp.where(real[..., None], x, fill), real) for fill in (0.0, 3.0))
    np.testing.assert_array_equal(y, other)
    jax.tree.map(np.testing.assert_array_equal, aside, other_aside)


def test_bfloat16_rounds_products_and_not_the_routing():
    params, x, real = arrays()
    x = x.astype(jnp.bfloat16)
    y, aside = jax.jit(layer())(params, x, real)
    exact, exact_aside = jax.jit(layer())(params, x.astype(jnp.float32), real)
    assert y.dtype == jnp.bfloat16 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(aside))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), aside, exact_aside)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max()))


LETTERS = {"router": "DE", "gate": "EDF", "up": "EDF", "down": "EFD"}


@pytest.mark.parametrize("batch", [("data", "fsdp"), ("data", "fsdp", "expert")], ids=str)
@pytest.mark.parametrize(
    "sizes", [dict(expert=4, data=2), dict(expert=2, tensor=2, fsdp=2), dict(expert=8), dict(data=4, tensor=2)], ids=str
)
def test_values_and_gradients_on_eight_devices_are_those_of_one(sizes, batch):
    params, x, real = arrays()
    on, rules = tiny.mesh(**sizes), tiny.config().sharding
    activations = rules.activations | {"B": batch}

    def loss(params, x):
        y, aside = layer()(params, x, real)
        routers = router_losses(aside, balance=0.7, z=0.3)
        return (y**2).mean() + sum(total / weight for total, weight in routers.values())

    def sharded(params, x):
        with sharding.activations(on, activations):
            return loss(params, x)

    held = {
        name: {"kernel": jax.device_put(k, sharding.parameter_sharding(k.shape, LETTERS[name], rules.params, on))}
        for name, (k,) in ((name, kernel.values()) for name, kernel in params.items())
    }
    x_there = jax.device_put(x, sharding.batch_sharding(on, activations))
    found = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(held, x_there)
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


def test_losses_of_the_routers_are_sums_with_the_tokens_as_weights():
    aside = {
        "tokens": jnp.asarray(10.0),
        "chosen_E": jnp.asarray([15.0, 5.0]),  # each token chooses two
        "share_E": jnp.asarray([8.0, 2.0]),
        "square": jnp.asarray(40.0),
    }
    losses = router_losses(aside, balance=0.01, z=0.001)
    expected = {"router_balance": 0.01 * 2 * (1.5 * 0.8 + 0.5 * 0.2), "router_z": 0.001 * 4.0}
    assert losses.keys() == expected.keys()
    for name, (total, weight) in losses.items():
        assert weight == 10
        np.testing.assert_allclose(total / weight, expected[name], rtol=1e-6)
    assert router_losses(aside, balance=0.0, z=0.0) == {}
    empty = router_losses(jax.tree.map(jnp.zeros_like, aside), balance=0.01, z=0.001)
    assert all(total == 0 and weight == 0 for total, weight in empty.values()), "no token, no loss, no NaN"
