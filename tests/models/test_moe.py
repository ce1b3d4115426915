"""What only families of experts do: sharing experts out, losses of routers, layers that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxft import build, sharding
from jaxft.models import bert, mixtral, qwen3_moe
from jaxft.registry import UserError
from jaxft.state import with_losses
from jaxft.step import make_train_step, new_state
from tests import tiny
from tests.hf.test_every_export import random_parameters
from tests.models.test_parity import batch_of, texts

pytestmark = pytest.mark.slow

FAMILIES = (mixtral, qwen3_moe)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32; never loosened


def network(family, sizes=None, head="causal_lm", cfg=None, **model):
    c = tiny.config()
    on = tiny.mesh(**sizes) if sizes else tiny.mesh(devices=1)
    options = dict(outputs=3, model=dataclasses.replace(c.model, **model), rules=c.sharding, mesh=on)
    return build.network(family, cfg or family.VARIANTS["losses"], head=head, **options)


def rows(family):
    """Eight rows, half of them packed."""
    one, two, three = texts(family)
    return batch_of([[one], [two, three], [two], [three, two]] * 2)


def sums(net, params, batch):
    logits, own = net.forward_with_losses(params, batch, None)
    labels = jnp.where(batch["segment"] > 0, batch["ids"], -1)
    return with_losses(logits.cross_entropy(labels, jnp.ones(labels.shape)), own)


@pytest.mark.parametrize(
    "sizes", [dict(expert=4, data=2), dict(expert=2, tensor=2, fsdp=2), dict(context=2, expert=2, data=2)], ids=str
)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.MODEL_TYPE)
def test_loss_and_gradients_with_experts_shared_out_are_those_of_one_device(family, sizes):
    results = []
    for on in (None, sizes):
        net = network(family, on)
        params, batch = random_parameters(net), rows(family)
        held = jax.device_put(batch, sharding.batch_sharding(net.mesh, net.activations))

        def loss(params, batch, net=net):
            total, weight = sums(net, params, batch)["loss"]
            return total / weight

        results.append(jax.jit(jax.value_and_grad(loss))(params, held))
        kernel = params["blocks"]["mlp"]["gate"]["kernel"]
        there = kernel.addressable_shards[0].data.shape[1]
        assert there * (on or {"expert": 1})["expert"] == net.cfg.experts, "a device keeps its own experts"
    (expected, expected_grads), (found, grads) = results
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    grads = flatten_dict(grads, sep="/")
    for path, wanted in flatten_dict(expected_grads, sep="/").items():
        np.testing.assert_allclose(grads[path], wanted, **TOLERANCE, err_msg=path)


def test_a_mesh_that_does_not_fit_the_experts_is_refused():
    cfg = dataclasses.replace(mixtral.TINY, experts=6)
    with pytest.raises(UserError, match=r"mesh.expert=4 does not divide the 6 experts of a layer; use one of: 1, 2, 3"):
        network(mixtral, dict(expert=4, data=2), cfg=cfg)
    with pytest.raises(UserError, match=r"mesh.expert=4: this model has no experts; set it to 1"):
        network(bert, dict(expert=4, data=2), head="sequence", cfg=bert.TINY)


@pytest.mark.parametrize("head", ["causal_lm", "sequence"])
def test_losses_of_routers_are_over_all_tokens_of_all_layers_however_rows_are_packed_and_blocks_are_run(head):
    one, two, three = texts(mixtral)
    alone, packed = batch_of([[one], [two], [three]]), batch_of([[one], [two, three]])
    params, found = None, []
    for batch, model in ((alone, {}), (packed, {}), (alone, dict(scan=True)), (alone, dict(remat="full"))):
        net = network(mixtral, head=head, **model)
        params = random_parameters(net) if params is None else params
        found.append(jax.jit(lambda p, b, net=net: net.forward_with_losses(p, b, None)[1])(params, batch))
    for losses in found:
        assert losses.keys() == {"router_balance", "router_z"}
        assert losses["router_z"][1] == mixtral.TINY.layers * sum(len(ids) for ids, _ in (one, two, three))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), losses, found[0])


def test_accumulated_losses_weigh_each_micro_batch_by_what_it_adds_to_the_tasks_loss():
    net, batch = network(mixtral), rows(mixtral)
    params = random_parameters(net)

    def loss(params, frozen, batch, key):
        return sums(net, params, batch)

    step = make_train_step(loss, optax.with_extra_args_support(optax.sgd(1.0)), seed=0, accumulate=2, clip=0.0, ema=0.0)
    state = new_state(params, {}, optax.sgd(1.0), ema=False)
    after, said = jax.jit(step)(state, batch)

    def by_hand(params):
        # Row r goes to micro-batch r % 2.
        parts = [sums(net, params, {name: array[i::2] for name, array in batch.items()}) for i in range(2)]
        return sum(part["loss"][0] for part in parts) / sum(part["loss"][1] for part in parts), parts

    (value, parts), grads = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(params)
    np.testing.assert_allclose(said["loss"][0] / said["loss"][1], value, **TOLERANCE)
    for name in ("router_balance", "router_z"):
        np.testing.assert_allclose(said[name], np.sum([part[name] for part in parts], 0), **TOLERANCE)
    for a, b, g in zip(*map(jax.tree.leaves, (after.params, params, grads)), strict=True):
        np.testing.assert_allclose(a, b - g, **TOLERANCE)


def test_the_tasks_loss_and_those_of_routers_add_up_at_their_coefficients():
    plain, routed = (network(mixtral, cfg=cfg) for cfg in (mixtral.TINY, mixtral.VARIANTS["losses"]))
    params, batch = random_parameters(plain), rows(mixtral)
    task, both = (jax.jit(lambda p, b, net=net: sums(net, p, b))(params, batch) for net in (plain, routed))
    assert task.keys() == {"loss", "accuracy"}
    mean = {name: float(total / weight) for name, (total, weight) in both.items()}
    expected = task["loss"][0] / task["loss"][1] + mean["router_balance"] + mean["router_z"]
    np.testing.assert_allclose(mean["loss"], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("family", "hub", "message"),
    [
        (mixtral, {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        (qwen3_moe, {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        (qwen3_moe, {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        (mixtral, {"num_experts_per_tok": 5}, "chosen=5 must be at most experts=4"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(family, hub, message):
    with pytest.raises(UserError, match=message):
        family.config_from_hf({**family.config_to_hf(family.TINY), "model_type": family.MODEL_TYPE, **hub})


def test_both_dialects_of_qwens_file_are_read():
    hub = {**qwen3_moe.config_to_hf(qwen3_moe.TINY), "model_type": "qwen3_moe"}
    experts = hub.pop("num_experts")
    five = hub | {"num_local_experts": experts, "mlp_only_layers": [], "decoder_sparse_step": 1}
    four = hub | {"num_experts": experts, "mlp_only_layers": None, "max_window_layers": 48, "sliding_window": 4096}
    assert qwen3_moe.config_from_hf(five) == qwen3_moe.config_from_hf(four) == qwen3_moe.TINY


def test_only_experts_that_a_token_meets_count_as_work():
    few, many = (dataclasses.replace(mixtral.TINY, experts=n) for n in (4, 8))
    router = 6 * (few.layers - 1) * 4 * few.d_model
    assert mixtral.flops_per_token(many, 10, 0.0) - mixtral.flops_per_token(few, 10, 0.0) == router
    more = dataclasses.replace(mixtral.TINY, chosen=3)
    expert = 6 * (few.layers - 1) * 3 * few.d_model * few.d_ff
    assert mixtral.flops_per_token(more, 10, 0.0) - mixtral.flops_per_token(few, 10, 0.0) == expert
