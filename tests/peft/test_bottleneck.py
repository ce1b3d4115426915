"""Bottleneck adapters: what they compute, and what of them trains."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import adapters, build
from jaxft.models import distilbert
from jaxft.peft import PEFT
from jaxft.peft.bottleneck import Houlsby, Pfeiffer
from jaxft.registry import UserError, call
from tests.golden.make_bottleneck import IDS_BL, shown
from tests.peft.tiny_adapters import BATCH, BOTH, HEADS, drawn, network, save_adapter, save_model, tiny_network

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


def forward(net, params, key=None):
    return np.asarray(jax.jit(net.forward)(params, BATCH, key))


def started(net):
    return build.parameters(net, None, 0, False)[0]


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
def test_every_number_of_an_adapter_has_a_gradient_and_its_dropout_is_drawn_anew_with_every_key(method):
    method = dataclasses.replace(method, act="gelu", dropout=0.5)
    cfg = dataclasses.replace(distilbert.TINY, dropout=0.0, attention_dropout=0.0)  # no other dropout than its own
    net = network("distilbert", method, head="token", cfg=cfg)
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
