"""What holds for every registered family, on its TINY config."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import vit_cls
from jaxft import build, sharding, verify
from jaxft.config import parse
from jaxft.hf import layout
from jaxft.layers.loss import softmax_cross_entropy
from jaxft.layers.stack import Execution
from jaxft.models import MODELS
from jaxft.registry import UserError, lookup
from jaxft.train import train
from tests import program, tiny

OUTPUTS = 3
TOLERANCE = 1e-5  # float32; never loosened
STILL = ("head/fixed/bias",)  # a buffer of the hub's: saved, used, never trained


# Of families that are made of the same parts one: logits, gradients and exports of all are compared with transformers'
# elsewhere (models/test_parity.py, hf/test_every_export.py), and whole runs of each take a minute.
MAKES = ("bert", "modernbert", "deberta-v2", "gpt2", "llama", "mixtral", "t5", "vit")


@pytest.fixture(params=MODELS)
def family(request):
    return lookup(MODELS, request.param, "model.name")


def any_head(family):
    """That of whole texts; of a family that has none, its first."""
    return "sequence" if "sequence" in family.HF_HEADS else next(iter(family.HF_HEADS))


def network(family, head="", **model):
    c = tiny.config()
    on = tiny.mesh(devices=1)
    options = dict(outputs=OUTPUTS, model=dataclasses.replace(c.model, **model), rules=c.sharding, mesh=on)
    return build.network(family, family.TINY, head=head or any_head(family), **options)


def parameters(net):
    return unflatten_dict(build.initialise(net, seed=0), sep="/")


def batch_of(ids_BL, length):
    """One example a row, padded to `length`."""
    B, L = ids_BL.shape
    pad = ((0, 0), (0, length - L))
    batch = {
        "ids": np.pad(ids_BL, pad),
        "type": np.zeros((B, length)),
        "segment": np.pad(np.ones((B, L)), pad),
        "position": np.broadcast_to(np.arange(length), (B, length)),
        "first": np.zeros((B, 1)),
    }
    batch |= {f"target_{name}": batch[name] for name in ("ids", "segment", "position")}
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


def inputs_of(family):
    """Four rows of what the family reads."""
    if family.KIND != "vision":
        return batch_of(random_ids(family), 12)
    cfg = family.TINY
    pixels = np.random.default_rng(0).normal(size=(4, cfg.image_size, cfg.image_size, cfg.channels))
    batch = {"pixels": jnp.asarray(pixels, jnp.float32), "segment": jnp.ones((4, cfg.positions), jnp.int32)}
    return batch | {"first": jnp.zeros((4, 1), jnp.int32)}


def random_ids(family):
    return np.random.default_rng(0).integers(1, family.TINY.vocab, (4, 9))


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKES, indirect=True)
def test_a_training_step_is_finite_and_lowers_the_loss(family):
    net = network(family)
    batch, labels_BS = inputs_of(family), jnp.asarray([[0], [1], [2], [1]])
    if net.head != "sequence":
        labels_BS = batch["ids"]

    @jax.jit
    def step(params, key):
        def loss(params):
            total, weight = softmax_cross_entropy(net.forward(params, batch, key), labels_BS, labels_BS >= 0)
            return total / weight

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), grads

    params = parameters(net)
    first, params, grads = step(params, jax.random.key(0))
    for path, grad in flatten_dict(grads, sep="/").items():
        assert np.isfinite(grad).all(), path
        assert (grad != 0).any() or path in STILL, f"{path} does not take part"
    for i in range(20):
        last, params, _ = step(params, jax.random.key(i))
    assert last < first


def test_padding_does_not_change_real_tokens(family):
    if family.KIND == "vision":
        return  # an image has none
    net, ids_BL = network(family), random_ids(family)
    forward = jax.jit(net.forward)
    params = parameters(net)
    short = forward(params, batch_of(ids_BL, ids_BL.shape[1]))
    padded = batch_of(ids_BL, 16)
    real = slice(0, short.shape[1])  # one vector a text, or those of its tokens
    np.testing.assert_allclose(forward(params, padded)[:, real], short, rtol=0, atol=TOLERANCE)
    junk = padded | {name: jnp.where(padded["segment"] > 0, padded["ids"], 7) for name in ("ids", "target_ids")}
    np.testing.assert_array_equal(forward(params, junk)[:, real], forward(params, padded)[:, real])


def test_layers_give_the_same_logits_scanned_and_unrolled(family):
    """Also layers of several kinds, and so many that their pattern ends in the middle."""
    nets = [network(family, scan=scan) for scan in (False, True)]
    params, batch = parameters(nets[0]), inputs_of(family)
    unrolled, scanned = (jax.jit(net.forward)(params, batch) for net in nets)
    np.testing.assert_allclose(scanned, unrolled, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_parameter_has_a_row_in_the_hub_table_with_its_own_axes(family):
    seen = set()
    for head in family.HF_HEADS:
        rows, own = layout.rows({**family.HF, **family.HF_HEADS[head]}), set()
        for cfg in (family.TINY, *family.VARIANTS.values()):
            _, declared = nnx.split(family.Model(cfg, head, OUTPUTS, Execution()))
            for path, variable in nnx.to_flat_state(declared):
                row, axes = rows["/".join(map(str, path))], variable.get_metadata("axes")
                stacked = tuple(letter for letter in axes if letter in row.stacked)
                assert (*stacked, *row.layout.param) == axes, path
                assert ("N" in axes) == ("{N" in row.name), path
                own.add("/".join(map(str, path)))
        assert own >= set(family.HF_HEADS[head]), "every row is of a parameter that TINY or a variant declares"
        seen |= own
    assert seen >= set(family.HF), "one of the heads stands on each part of the trunk"


def test_parameters_share_a_hub_tensor_only_as_marked_parts_of_it(family):
    for head in family.HF_HEADS:
        net = network(family, head)
        assert layout.parts(layout.rows(net.table), net.stored).keys() == net.abstract.keys()
        assert all(name.startswith(family.HF_PREFIX) for path, (name, _) in family.HF.items())


def test_the_config_survives_a_trip_to_the_hub(family):
    """Each field is changed in turn, so that one which is not carried over shows."""
    other = {int: lambda x: 2 * x, float: lambda x: x / 2 + 0.01, bool: lambda x: not x}
    for field in dataclasses.fields(family.Config):
        value = getattr(family.TINY, field.name)
        changed = other[type(value)](value) if type(value) in other else value
        cfg = dataclasses.replace(family.TINY, **{field.name: changed})
        hub = json.loads(json.dumps(family.config_to_hf(cfg)))
        assert family.config_from_hf({**hub, "model_type": family.MODEL_TYPE}) == cfg, field.name


def test_a_hub_field_that_nobody_reads_is_refused_by_name(family):
    with pytest.raises(UserError, match="rotary_surprise=3"):
        hub = {**family.config_to_hf(family.TINY), "model_type": family.MODEL_TYPE}
        family.config_from_hf({**hub, "rotary_surprise": 3})


def test_a_token_costs_more_in_a_longer_text(family):
    short, long = (family.flops_per_token(family.TINY, attended, 0.0) for attended in (2.0, 4.0))
    assert 0 < short < long


def test_the_registry_key_is_the_hubs_model_type(family):
    assert MODELS[family.MODEL_TYPE] == family.__name__
    assert set(family.HF_ARCHITECTURES) == set(family.HF_HEADS)


def test_every_letter_that_can_be_sharded_is_one_that_parameters_carry(family):
    c = tiny.config()
    _, declared = nnx.split(family.Model(family.TINY, any_head(family), OUTPUTS, Execution()))
    letters = {letter for _, variable in nnx.to_flat_state(declared) for letter in variable.get_metadata("axes")}
    some = {"E"} | ({"V"} if family.KIND == "vision" else set())
    assert set(c.sharding.params) - some <= letters, (
        "but experts, which only some have, and words, which images have not"
    )
    sharding.check_rules(c.sharding.params, c.sharding.activations)


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKES, indirect=True)
def test_a_run_from_random_weights_leaves_a_folder_that_the_hubs_library_reads_alike(family, tmp_path):
    if "sequence" not in family.HF_HEADS:
        pytest.skip("the run is one of classification, which this family has no head for")
    fields = {field.name: getattr(family.TINY, field.name) for field in dataclasses.fields(family.TINY)}
    scratch = {name: value for name, value in fields.items() if name not in ("vocab", "pad_id")}
    raw = program.config(model__name=family.MODEL_TYPE, train__duration="2 steps")
    if family.KIND == "vision":
        raw |= {"data": {"name": "digits"}, "tokenizer": None, "task": vit_cls.get_config().task.to_dict()}
        raw["input"] = {"length": family.TINY.positions, "pack": 1, "on_bad": "stop"}
    raw["model"]["scratch"] = scratch
    train(raw, parse(raw), tmp_path / "run", (), lambda text: None)
    hub = tmp_path / "run" / "hf"
    config = json.loads((hub / "config.json").read_text())
    assert config["model_type"] == family.MODEL_TYPE
    assert config["architectures"] == [family.HF_ARCHITECTURES["sequence"]]
    net = build.network(
        family,
        family.config_from_hf(config),
        head="sequence",
        outputs=len(config["id2label"]),
        model=tiny.config().model,
        rules=tiny.config().sharding,
        mesh=tiny.mesh(devices=1),
    )
    params, said = build.parameters(net, hub, seed=0, reset_head=False)
    assert not said
    difference, _ = verify.largest_difference(hub, net, params, "float32")
    assert difference <= TOLERANCE
