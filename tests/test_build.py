import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import build
from jaxft.hf import files, save
from jaxft.models import bert
from jaxft.registry import UserError
from tests import tiny

HUB = {"model_type": "bert", **bert.config_to_hf(bert.TINY)}


def section(**changes):
    return dataclasses.replace(tiny.config().model, **changes)


def test_declaring_a_network_allocates_nothing():
    before = len(jax.live_arrays())
    net = tiny.network(tiny.mesh(fsdp=4, tensor=2), cfg=bert.Config(vocab=2**26, d_model=8192, heads=64))
    assert len(jax.live_arrays()) == before
    assert net.abstract["embed/word/table"].shape == (2**26, 8192), "2 TB, were it real"
    assert net.sizes()["blocks"] == sum(leaf.size for path, leaf in net.abstract.items() if path.startswith("blocks/"))


def test_random_parameters_depend_on_seed_and_path_alone():
    """Neither on the mesh nor on which others are drawn: a new head is the same head whatever came from the hub."""
    one, many = tiny.network(tiny.mesh(devices=1)), tiny.network(tiny.mesh(data=2, fsdp=2, tensor=2))
    whole, sharded = build.initialise(one, seed=3), build.initialise(many, seed=3)
    for path, value in whole.items():
        np.testing.assert_array_equal(value, sharded[path], err_msg=path)
        assert sharded[path].sharding == many.abstract[path].sharding
    alone = build.initialise(many, 3, ["head/classifier/kernel"])
    np.testing.assert_array_equal(alone["head/classifier/kernel"], whole["head/classifier/kernel"])
    other = build.initialise(one, seed=4)
    assert not np.array_equal(other["head/classifier/kernel"], whole["head/classifier/kernel"])


def test_initial_values_are_those_of_bert():
    flat = build.initialise(tiny.network(tiny.mesh(devices=1), cfg=bert.Config(vocab=500, layers=2, types=50)), seed=0)
    for path, value in flat.items():
        last = path.rsplit("/", 1)[1]
        if last in ("kernel", "table"):
            assert np.std(value) == pytest.approx(0.02, rel=0.05) and abs(np.mean(value)) < 1e-3, path
        else:
            np.testing.assert_array_equal(value, np.full_like(value, last == "scale"), err_msg=path)
    kernel_NDF = flat["blocks/mlp/up/kernel"]
    assert not np.array_equal(kernel_NDF[0], kernel_NDF[1]), "each layer has its own numbers"


def test_fields_of_the_hub_the_config_and_the_run_come_together():
    family, cfg = build.family_config(section(hf="x", override={"layers": 1}), HUB)
    assert family is bert and cfg == dataclasses.replace(bert.TINY, layers=1)
    _, fresh = build.family_config(section(scratch={"layers": 1}), None, vocab=77, pad_id=5)
    assert fresh == bert.Config(layers=1, vocab=77, pad_id=5)


@pytest.mark.parametrize(
    ("changes", "hub", "message"),
    [
        (dict(override={"layer": 1}), HUB, r'model.override.layer is not an option here.*did you mean "layers"'),
        (dict(override={"layers": "two"}), HUB, "model.override.layers='two' is a str; it must be a int"),
        (dict(override={"vocab": 5}), HUB, "model.override.vocab is not an option here"),
        (dict(override={"heads": 5}), HUB, "d_model=32 is not divisible by heads=5"),
        (dict(hf="x"), HUB | {"model_type": "mamba"}, "x: model_type='mamba' is not known; known: b"),
        (dict(hf="x"), {"model_type": "gemma3"}, "x: model_type='gemma3' is not supported: .*gemma3_text"),
        (
            dict(hf="x"),
            {"model_type": "deepseek_v3"},
            "model_type='deepseek_v3' is not supported: its latent attention",
        ),
        (dict(), HUB | {"is_decoder": True}, "fields that are not supported: is_decoder=True"),
    ],
)
def test_a_wrong_model_is_refused_by_field(changes, hub, message):
    with pytest.raises(UserError, match=message):
        build.family_config(section(**{"hf": "x", "override": {}, **changes}), hub)


@pytest.fixture
def folder(tmp_path):
    net = tiny.network(tiny.mesh(devices=1))
    save.save(
        tmp_path, unflatten_dict(build.initialise(net, seed=1), sep="/"), net.table, dtype="float32", shapes=net.stored
    )
    return tmp_path


def test_hub_weights_are_taken_and_the_head_too_unless_it_is_reset(folder):
    net = tiny.network(tiny.mesh(fsdp=4, tensor=2))
    stored, fresh = build.initialise(net, seed=1), build.initialise(net, seed=9)
    for reset, head in ((False, stored), (True, fresh)):
        params, said = build.parameters(net, folder, seed=9, reset_head=reset)
        flat = flatten_dict(params, sep="/")
        for path, value in flat.items():
            expected = head if path.startswith("head/") else stored
            np.testing.assert_array_equal(value, expected[path], err_msg=path)
            assert value.sharding == net.abstract[path].sharding
        assert bool(said) == reset
        assert not reset or all(path in said[0] for path in flat if path.startswith("head/"))


def test_a_vocabulary_that_no_axis_divides_is_filled_up_with_zeros_and_cropped_on_export(folder, tmp_path):
    net = tiny.network(tiny.mesh(fsdp=2, tensor=4))
    table = net.abstract["embed/word/table"]
    assert (table.shape[0], net.cfg.vocab) == (128, 99) and table.sharding.spec[0] == "tensor"
    for params in (build.initialise(net, 0), flatten_dict(build.parameters(net, folder, 0, False)[0], sep="/")):
        rows = np.asarray(params["embed/word/table"])
        assert rows[:99].any(axis=1).all() and not rows[99:].any()
    loaded, _ = build.parameters(net, folder, 0, False)
    save.save(tmp_path / "out", loaded, net.table, dtype="float32", shapes=net.stored)
    name = net.table["embed/word/table"][0]
    assert files.index(tmp_path / "out")[name].shape[0] == 99
    assert (tmp_path / "out" / files.SINGLE).read_bytes() == (folder / files.SINGLE).read_bytes()


def test_a_vocabulary_is_filled_up_to_what_an_odd_axis_divides(folder):
    assert tiny.network(tiny.mesh(devices=3, tensor=3)).abstract["embed/word/table"].shape[0] == 384


def test_bfloat16_parameters_are_declared_made_and_read_as_such(folder):
    net = tiny.network(tiny.mesh(devices=1), param_dtype="bfloat16")
    for params in (build.initialise(net, 0), flatten_dict(build.parameters(net, folder, 0, False)[0], sep="/")):
        assert {value.dtype for value in params.values()} == {jnp.dtype("bfloat16")}
