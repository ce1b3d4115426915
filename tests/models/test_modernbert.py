"""What is ModernBERT's own: two ways of saying which layers see what, windows, and a lowest layer unlike the others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import build
from jaxft.models import modernbert
from jaxft.registry import UserError
from tests import tiny
from tests.models import test_parity as parity

FIELDS = {"model_type": "modernbert", "num_hidden_layers": 5}
OLD = FIELDS | {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": 5000.0}
NEW = FIELDS | {
    "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 80000.0},
        "sliding_attention": {"rope_theta": 5000.0},
    },
}


@pytest.mark.parametrize("hub", [OLD, NEW, OLD | NEW], ids=["old", "new", "both"])
def test_both_dialects_of_config_json_are_read_alike(hub):
    cfg = modernbert.Config(layers=5, global_every=2, global_theta=80000.0, local_theta=5000.0)
    assert modernbert.config_from_hf(hub) == cfg


def test_what_a_file_leaves_out_is_what_transformers_takes_for_it():
    assert modernbert.config_from_hf({"model_type": "modernbert"}) == modernbert.Config()
    assert modernbert.config_from_hf(FIELDS | {"rope_parameters": {"full_attention": {}}}) == modernbert.Config(
        layers=5
    )
    one = modernbert.config_from_hf(FIELDS | {"global_rope_theta": 500.0, "local_rope_theta": None})
    assert one.local_theta == 500.0  # as transformers 4 has it


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 5}, "layer_types"),
        (OLD | {"layer_types": ["full_attention"] * 5}, r"layer_types=.*global_attn_every_n_layers=\[2\]"),
        (NEW | {"global_rope_theta": 7.0}, "rope_parameters of full_attention.*80000"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "linear"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"mlp_dropout": 0.1}, "mlp_dropout=0.1"),
        ({"classifier_pooling": "max"}, "pooling='max'"),
        ({"local_attention": 1}, "window=1"),
    ],
)
def test_what_is_not_supported_or_contradicts_itself_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        modernbert.config_from_hf(FIELDS | fields)


def network(cfg=modernbert.TINY, **model):
    c = tiny.config()
    section = dataclasses.replace(c.model, **model)
    options = dict(outputs=5, model=section, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return build.network(modernbert, cfg, head="token", **options)


def parameters(net):
    flat = build.initialise(net, seed=0)
    return build.unflatten_dict({path: leaf * (1 if "norm" in path else 10) for path, leaf in flat.items()}, sep="/")


def test_the_comparison_with_transformers_sees_a_window_that_is_one_token_off():
    batch, params = parity.batch_of([[text] for text in parity.texts(modernbert)]), parameters(network())
    logits = {
        window: jax.jit(network(dataclasses.replace(modernbert.TINY, window=window)).forward)(params, batch)
        for window in (6, 8, 9, 10)
    }
    np.testing.assert_array_equal(logits[9], logits[8])  # half of it is what counts
    for window in (6, 10):
        off = [np.abs((logits[window] - logits[8])[row, :n]).max() for row, n in enumerate(parity.LENGTHS)]
        assert min(off[:2]) > 10 * parity.TOLERANCE["atol"]
    assert off[2] < parity.TOLERANCE["atol"]  # a text of 5 tokens ends before windows of 4 and 5 on either side do


@pytest.mark.parametrize("how", [dict(scan=True), dict(remat="full"), dict(scan=True, remat="dots")], ids=str)
def test_the_lowest_layer_and_the_stacked_ones_are_the_same_however_they_run(how):
    batch, params = parity.batch_of([[text] for text in parity.texts(modernbert)]), parameters(network())

    def run(net):
        loss = lambda params: jnp.square(net.forward(params, batch)).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(network(**how)), run(network())
    )
