"""Bottleneck adapters: what they compute, what of them trains, and the folders of the `adapters` library."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxft import adapters, build
from jaxft.hf.layout import parts, rows
from jaxft.models import MODELS
from jaxft.peft import PEFT, adapterhub
from jaxft.peft.bottleneck import Houlsby, Pfeiffer
from jaxft.registry import UserError, call, lookup
from tests import tiny
from tests.golden.make_bottleneck import FIELDS, IDS_BL, KINDS, TARGET_IDS_BT, numbers, shown

BOTH = pytest.mark.parametrize("method", [Houlsby(reduction=4), Pfeiffer(reduction=4)], ids=["houlsby", "pfeiffer"])
HEADS = {"bert": "sequence", "gpt2": "causal_lm", "mixtral": "causal_lm", "bart": "seq2seq_lm", "t5": "seq2seq_lm"}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Printed by tests/golden/make_bottleneck.py with adapters 1.3.0, transformers 4.57.6, torch 2.13.0.
LIBRARY = {
    ("bert", "seq_bn"): [[-0.7090163, 0.5500636], [-0.70468545, 0.4752416]],
    ("bert", "double_seq_bn"): [[-0.35579282, 0.9679591], [-0.28243148, 0.92976516]],
    ("gpt2", "seq_bn"): [
        [-2.3026454, 0.5662119, 0.22436634, 1.3473463, 1.6163898, 2.933336],
        [-1.8310158, 1.3780472, -0.25596815, -0.5596445, 0.15375885, 1.6094376],
    ],
    ("gpt2", "double_seq_bn"): [
        [-0.85085654, 0.34479037, 0.5056236, 1.1868988, 1.6625007, 3.1647532],
        [-0.81501245, 1.6920683, 1.028466, 0.6490807, 1.5804259, 2.416723],
    ],
    ("bart", "seq_bn"): [
        [0.5006096, -1.483209, 0.50744295, -0.50007117, 0.7529431, -0.76760197],
        [-0.8175585, -0.34909245, -0.674954, -0.13218676, 0.19997036, -1.425338],
    ],
    ("bart", "double_seq_bn"): [
        [0.25209802, -1.6245112, 0.20910582, 0.29117072, 0.16864996, -0.78456753],
        [-0.78456354, -0.6655962, -0.12977153, 0.24197514, 0.24204147, -0.4839138],
    ],
}


def network(name, peft=None, *, head="", cfg=None, **model):
    """A network of a family, `cfg` None: that of the numbers of the library."""
    c, family = tiny.config(), lookup(MODELS, name, "model.name")
    return build.network(
        family,
        family.config_from_hf({"model_type": name, **FIELDS[name]}) if cfg is None else cfg,
        head=head or HEADS[name],
        outputs=2,
        model=dataclasses.replace(c.model, **model),
        rules=c.sharding,
        mesh=tiny.mesh(1),
        peft=peft,
    )


def tiny_network(name, peft=None, head="", **model):
    return network(name, peft, head=head, cfg=lookup(MODELS, name, "model.name").TINY, **model)


def batch_of(ids_BL, target_ids_BT):
    def row(ids):
        return (
            ids.astype(np.int32),
            np.ones_like(ids, np.int32),
            np.arange(ids.shape[1], dtype=np.int32)[None] + 0 * ids,
        )

    ids, segment, position = row(ids_BL)
    batch = {"ids": ids, "segment": segment, "position": position.astype(np.int32), "type": 0 * ids}
    ids, segment, position = row(target_ids_BT)
    batch |= {"target_ids": ids, "target_segment": segment, "target_position": position.astype(np.int32)}
    return batch | {"first": np.zeros((len(ids), 1), np.int32)}


BATCH = batch_of(IDS_BL, TARGET_IDS_BT)


def forward(net, params, key=None):
    return np.asarray(jax.jit(net.forward)(params, BATCH, key))


def started(net):
    return build.parameters(net, None, 0, False)[0]


def drawn(net, seed=0):
    """Parameters with which adapters do something."""
    rng = np.random.default_rng(seed)
    new = {path: 0.3 * rng.standard_normal(net.abstract[path].shape, np.float32) for path in sorted(net.abstract)}
    return unflatten_dict({path: jax.numpy.asarray(array) for path, array in new.items()}, sep="/")


def save_model(folder, net):
    """The network of make_bottleneck.py as a folder of transformers."""
    table = rows(net.table)
    places = parts(table, {path: net.stored[path] for path in table})
    names = {name: places[path].whole for path, row in table.items() for _, name in row.tensors(net.stored[path])}
    tensors = {name: numbers(name, whole) for name, whole in names.items()}
    if "final_logits_bias" in tensors:  # no parameter there
        tensors["final_logits_bias"] *= 0
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")


def save_adapter(folder, net, kind, **config):
    """Its adapter as a folder of the `adapters` library."""
    fields, own = net.peft.to_hub(adapters.modules(net), {path: np.zeros(net.stored[path]) for path in net.added})
    names = {name.replace(f".{adapterhub.NAME}.", ".golden."): array.shape for name, array in own.items()}
    section = {
        "model_class": "",
        "name": "golden",
        "version": "adapters.1.3.0",
        "config": {**fields["config"], **KINDS[kind], **config},
    }
    folder.mkdir()
    save_file({name: numbers(name, shape) for name, shape in names.items()}, folder / adapterhub.WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps(section))


def rewrite(folder, **config):
    file = folder / "adapter_config.json"
    section = json.loads(file.read_text())
    file.write_text(json.dumps(section | {"config": section["config"] | config}))


@pytest.mark.parametrize(("family", "kind"), LIBRARY)
def test_logits_are_those_of_the_adapters_library(family, kind, tmp_path):
    method = Pfeiffer(width=8) if kind == "seq_bn" else Houlsby(width=6, cross=True, act="swish")
    save_model(tmp_path / "model", network(family))
    save_adapter(tmp_path / "adapter", network(family, method), kind)
    net, adapter = adapters.network(lambda peft=None: network(family, peft), tmp_path / "adapter")
    params, _ = build.parameters(net, tmp_path / "model", 0, False)
    logits = forward(net, adapters.applied(net, params, adapter))
    logits = logits[:, 0] if HEADS[family] == "sequence" else logits
    assert net.peft == method
    np.testing.assert_allclose(shown(logits), LIBRARY[family, kind], **TOLERANCE)


@BOTH
def test_a_network_begins_nearly_as_it_was_and_exactly_so_where_what_goes_up_is_zero(method):
    plain, net = tiny_network("bert"), tiny_network("bert", method)
    params = started(net)
    before = forward(plain, started(plain))
    after = forward(net, params)
    assert 0 < np.abs(after - before).max() < 1e-2 * np.abs(before).max()
    flat = {path: 0 * leaf if "/adapter/up/" in path else leaf for path, leaf in flatten_dict(params, sep="/").items()}
    np.testing.assert_array_equal(forward(net, unflatten_dict(flat, sep="/")), before)


@BOTH
def test_each_adapter_has_two_kernels_and_two_biases_and_only_they_train_beside_a_head_of_classes(method):
    net = tiny_network("bert", method)
    layers, d_model, width = net.cfg.layers, net.cfg.d_model, net.cfg.d_model // 4
    each = 2 * d_model * width + width + d_model
    adapters_a_layer = 2 if isinstance(method, Houlsby) else 1
    assert sum(np.prod(net.stored[path]) for path in net.added) == layers * adapters_a_layer * each
    head = {path for path in net.abstract if path.startswith("head/")}
    assert {path for path in net.abstract if net.trains(path)} == {*net.added, *head}
    masked = tiny_network("bert", method, "masked_lm")
    assert {path for path in masked.abstract if masked.trains(path)} == {*masked.added}


@BOTH
def test_every_number_of_an_adapter_has_a_gradient_and_dropout_has_keys_of_its_own_in_every_layer(method):
    method = dataclasses.replace(method, act="gelu", dropout=0.5)
    net = tiny_network("distilbert", method, "token")
    params = drawn(net)

    def loss(params, key):
        return (net.forward(params, BATCH, key) ** 2).sum()

    gradients = jax.jit(jax.grad(loss))
    one, same, other = (flatten_dict(gradients(params, jax.random.key(n)), sep="/") for n in (0, 0, 1))
    for path in net.added:
        assert np.abs(one[path]).max() > 0, path
        np.testing.assert_array_equal(one[path], same[path])
        assert not np.array_equal(one[path], other[path]), path


@BOTH
@pytest.mark.parametrize("key", [None, 0], ids=["evaluated", "trained"])
def test_scanned_blocks_compute_what_unrolled_ones_do(method, key):
    method = dataclasses.replace(method, dropout=0.25)
    nets = [tiny_network("distilbert", method, "token", scan=scan) for scan in (False, True)]
    params = drawn(nets[0])
    key = None if key is None else jax.random.key(key)
    unrolled, scanned = (forward(net, params, key) for net in nets)
    np.testing.assert_allclose(scanned, unrolled, **TOLERANCE)


@BOTH
def test_a_folder_brings_back_adapters_head_and_what_trained_whole(method, tmp_path):
    method = dataclasses.replace(method, act="gelu", dropout=0.1, modules_to_save=("blocks/mlp_norm",))
    net = tiny_network("bert", method)
    params = drawn(net)
    adapters.write(tmp_path / "hf", net, params, base="some/bert", task={}, beside=lambda new: None, card="")
    again, adapter = adapters.network(lambda peft=None: tiny_network("bert", peft), tmp_path / "hf")
    method = dataclasses.replace(method, width=net.cfg.d_model // 4, reduction=16.0)
    assert again.peft == dataclasses.replace(method, modules_to_save=("blocks/mlp_norm",))
    read = flatten_dict(adapters.applied(again, drawn(again, seed=1), adapter), sep="/")
    for path, leaf in flatten_dict(params, sep="/").items():
        if net.trains(path):
            np.testing.assert_array_equal(read[path], leaf, err_msg=path)
    section = json.loads((tmp_path / "hf/adapter_config.json").read_text())
    assert (section["model_class"], section["model_name"]) == ("BertForSequenceClassification", "some/bert")
    head = load_file(tmp_path / "hf" / adapterhub.HEAD_WEIGHTS)
    assert {"classifier.weight", "bert.pooler.dense.bias", "bert.encoder.layer.1.output.LayerNorm.weight"} <= set(head)
    with pytest.raises(UserError, match="cannot be merged"):
        adapters.merged(net, params)


def test_tensors_have_the_names_of_the_library(tmp_path):
    def names(family, method):
        net = tiny_network(family, method)
        _, tensors = net.peft.to_hub(adapters.modules(net), {path: np.zeros(net.stored[path]) for path in net.added})
        return {name.partition(".adapter_")[0] for name in tensors if name.endswith("down.0.weight")}

    layers = [f"bert.encoder.layer.{i}." for i in range(tiny_network("bert").cfg.layers)]
    assert names("bert", Pfeiffer()) == {f"{layer}output.adapters.jaxft" for layer in layers}
    places = ("attention.output", "output")
    assert names("bert", Houlsby()) == {f"{layer}{place}.adapters.jaxft" for layer in layers for place in places}
    assert "transformer.h.0.output_adapters.adapters.jaxft" in names("gpt2", Pfeiffer())
    assert "decoder.block.1.layer.2.adapters.jaxft" in names("t5", Pfeiffer(reduction=4))
    found = names("bart", Houlsby(cross=True))
    assert "model.decoder.layers.0.cross_attention_adapters.adapters.jaxft" in found
    assert "model.encoder.layers.0.attention_adapters.adapters.jaxft" in found


def test_layers_may_have_no_adapter_or_a_narrower_one(tmp_path):
    net = network("bert", Pfeiffer(width=8))
    save_adapter(tmp_path / "adapter", net, "seq_bn", leave_out=[0], scaling=1.0)
    file = tmp_path / "adapter" / adapterhub.WEIGHTS
    tensors = {name: array for name, array in load_file(file).items() if "layer.0." not in name}
    save_file(tensors, file)
    _, adapter = adapters.network(lambda peft=None: network("bert", peft), tmp_path / "adapter")
    for path, array in adapter.added.items():
        assert not array[0].any(), path
    up = tensors["bert.encoder.layer.1.output.adapters.golden.adapter_up.weight"]
    np.testing.assert_array_equal(adapter.added["blocks/adapter/up/kernel"][1], up.T)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ln_after": True}, "config.ln_after=True is not supported; only False is"),
        ({"is_parallel": True}, "is_parallel"),
        ({"scaling": "learned"}, "scaling"),
        ({"architecture": "prefix_tuning"}, "prefix_tuning"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ({"mh_adapter": True, "output_adapter": False}, "those of double_seq_bn and seq_bn are"),
        ({"non_linearity": "leakyrelu"}, "leakyrelu"),
    ],
)
def test_a_folder_of_other_adapters_is_refused_by_its_option(config, message, tmp_path):
    save_adapter(tmp_path / "adapter", network("bert", Pfeiffer(width=8)), "seq_bn")
    rewrite(tmp_path / "adapter", **config)
    with pytest.raises(UserError, match=message):
        adapters.read(tmp_path / "adapter", network("bert"))


def save_head(folder, layers, **config):
    """A head of the library's own over 32 wide vectors, beside an adapter."""
    shapes = {f"heads.golden.{1 + 3 * i}": (2 if i == layers - 1 else 32, 32) for i in range(layers)}
    tensors = {f"{name}.{kind}": numbers(name, shape[:n]) for name, shape in shapes.items() for n, kind in ENDS}
    section = {"model_type": "bert", "model_class": "BertAdapterModel", "name": "golden"}
    own = {"head_type": "classification", "layers": layers, "label2id": {"no": 0, "yes": 1}, **config}
    save_file(tensors, folder / adapterhub.HEAD_WEIGHTS)
    (folder / adapterhub.HEAD_CONFIG).write_text(json.dumps(section | {"config": own}))


ENDS = ((1, "bias"), (2, "weight"))


@pytest.mark.parametrize(
    ("layers", "config", "read"),
    [
        (2, {"activation_function": "tanh"}, {"head/pooler/kernel": 1, "head/classifier/kernel": 4}),
        (1, {"activation_function": None, "use_pooler": True}, {"head/classifier/kernel": 1}),
        (2, {"activation_function": "gelu"}, None),
        (3, {"activation_function": "tanh"}, None),
        (2, {"activation_function": "tanh", "head_type": "causal_lm"}, None),
    ],
)
def test_heads_of_the_library_are_read_where_transformers_has_the_same(layers, config, read, tmp_path):
    folder, net = tmp_path / "adapter", network("bert")
    save_adapter(folder, network("bert", Pfeiffer(width=8)), "seq_bn")
    save_head(folder, layers, **config)
    if read is None:
        with pytest.raises(UserError, match="is none of this model's"):
            adapters.read(folder, net)
        return
    wholes = adapters.read(folder, net).wholes
    assert {path for path in wholes if path.endswith("kernel")} == set(read)
    for path, number in read.items():
        shape = net.stored[path][::-1]
        np.testing.assert_array_equal(wholes[path][()], numbers(f"heads.golden.{number}", shape).T)
    hf = adapters.config({"model_type": "bert"}, folder)
    assert (hf["architectures"], hf["id2label"]) == (["BertForSequenceClassification"], {"0": "no", "1": "yes"})


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", network("bert", Pfeiffer(width=8)), "seq_bn")
    with pytest.raises(UserError, match="another model"):
        adapters.read(tmp_path / "adapter", network("gpt2"))
    (tmp_path / "adapter" / adapterhub.WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no adapter"):
        adapters.read(tmp_path / "adapter", network("bert"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reduction": 0.0}, "peft.reduction=0.0 must be above 0"),
        ({"width": -1}, "peft.width=-1"),
        ({"act": "relo"}, "peft.act='relo' must be one of: gelu"),
        ({"dropout": 1.0}, "peft.dropout=1.0"),
        ({"reduction": 64.0}, "leaves no width of 32"),
    ],
)
def test_options_that_make_no_adapter_are_refused(section, message):
    with pytest.raises(UserError, match=message):
        tiny_network("bert", call(PEFT, {"name": "pfeiffer", **section}, "peft"))


def test_experts_have_no_layer_behind_which_an_adapter_stands_but_their_block_has_a_place():
    with pytest.raises(UserError, match=r"`down` in every block.*'pfeiffer'.*blocks/attn/out"):
        tiny_network("mixtral", Houlsby(reduction=4))
    net = tiny_network("mixtral", Pfeiffer(reduction=4))
    assert forward(net, drawn(net)).shape[:2] == IDS_BL.shape
