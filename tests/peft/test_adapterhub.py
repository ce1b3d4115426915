"""The folders of the `adapters` library, both ways."""

import dataclasses
import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxft import adapters, exporting
from jaxft.peft import adapterhub
from jaxft.peft.bottleneck import Houlsby, Pfeiffer
from jaxft.registry import UserError
from tests.golden.make_bottleneck import numbers
from tests.peft.tiny_adapters import BOTH, drawn, network, save_adapter, tiny_network


def rewrite(folder, **config):
    file = folder / "adapter_config.json"
    section = json.loads(file.read_text())
    file.write_text(json.dumps(section | {"config": section["config"] | config}))


@BOTH
def test_a_folder_brings_back_adapters_head_and_what_trained_whole(method, tmp_path):
    method = dataclasses.replace(method, act="gelu", dropout=0.1, modules_to_save=("blocks/mlp_norm",))
    net = tiny_network("bert", method)
    params = drawn(net)
    for _ in range(2):  # an export replaces an earlier one
        exporting.write(tmp_path / "hf", net, params, base="some/bert", task={}, beside=lambda new: None, card="")
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
        _, tensors = net.peft.to_hub(
            adapters.modules(net, "adapters"), {path: np.zeros(net.stored[path]) for path in net.added}, None
        )
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
    hf = adapterhub.head_fields(folder)
    assert (hf["architectures"], hf["id2label"]) == (["BertForSequenceClassification"], {"0": "no", "1": "yes"})


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", network("bert", Pfeiffer(width=8)), "seq_bn")
    with pytest.raises(UserError, match="another model"):
        adapters.read(tmp_path / "adapter", network("gpt2"))
    (tmp_path / "adapter" / adapterhub.WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no adapter"):
        adapters.read(tmp_path / "adapter", network("bert"))
