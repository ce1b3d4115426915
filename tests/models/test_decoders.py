"""What the files of single decoders on the hub say in their own ways, and how GPT-2 begins."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import build
from jaxft.hf import save as hf_save
from jaxft.models import gpt2, llama, mistral, phi3, qwen2, qwen3
from jaxft.registry import UserError
from tests import tiny


def hub(family, cfg, **fields):
    """The file of `cfg` with `fields`; ABSENT takes one out."""
    found = {**family.config_to_hf(cfg), "model_type": family.MODEL_TYPE, **fields}
    return {name: value for name, value in found.items() if value is not ABSENT}


ABSENT = object()


def read(family, cfg, **fields):
    return family.config_from_hf(json.loads(json.dumps(hub(family, cfg, **fields))))


# ---- the window ----


def test_mistrals_window_is_null_or_left_out_or_a_number():
    assert read(mistral, mistral.TINY, sliding_window=None).window == 0
    assert read(mistral, mistral.TINY, sliding_window=ABSENT).window == 4096
    assert read(mistral, mistral.TINY, sliding_window=5).window == 5
    assert mistral.config_to_hf(mistral.VARIANTS["full"])["sliding_window"] is None


def test_key_heads_that_are_null_are_as_many_as_heads_and_left_out_the_familys():
    cfg = dataclasses.replace(mistral.TINY, heads=8, head_dim=4)
    assert read(mistral, cfg, num_key_value_heads=None).kv_heads == 8
    assert read(mistral, dataclasses.replace(cfg, heads=16), num_key_value_heads=ABSENT).kv_heads == 8


OLD = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "layer_types": ABSENT}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("family", [qwen2, qwen3], ids=lambda family: family.MODEL_TYPE)
def test_qwens_say_which_layers_slide_in_two_ways(family):
    cfg = dataclasses.replace(family.TINY, layers=3)
    old = read(family, cfg, **OLD)
    assert (old.window, old.layer_types) == (7, (FULL, SLIDING, SLIDING))
    assert read(family, cfg, **OLD | {"layer_types": [FULL, SLIDING, SLIDING]}) == old
    assert read(family, old) == old
    assert hub(family, old)["max_window_layers"] == 1, "for readers that do not know layer_types"
    some = read(family, cfg, **OLD | {"layer_types": [SLIDING, FULL, SLIDING]})
    assert some.layer_types == (SLIDING, FULL, SLIDING)
    assert read(family, cfg, **OLD | {"max_window_layers": 0}) == dataclasses.replace(cfg, window=7)
    for none in ({"use_sliding_window": False}, {"sliding_window": None}, {"max_window_layers": 3}):
        assert read(family, cfg, **OLD | none) == cfg, "every layer sees all"
    assert family.config_from_hf({"model_type": family.MODEL_TYPE}).window == 0, "the defaults"


@pytest.mark.parametrize(
    "fields",
    [{"layer_types": [FULL, SLIDING]}, {"layer_types": [FULL, "chunked", FULL]}, {"use_sliding_window": False}],
    ids=["too few", "unknown", "no window"],
)
def test_layer_types_that_cannot_be_are_refused(fields):
    cfg = dataclasses.replace(qwen2.TINY, layers=3)
    with pytest.raises(
        UserError, match=r"layer_types=\[.*\] with window=\d must be sliding_attention or full_attention"
    ):
        read(qwen2, cfg, **OLD | {"layer_types": [FULL, FULL, SLIDING]} | fields)


# ---- heads ----


@pytest.mark.parametrize("family", [llama, mistral, qwen2, gpt2], ids=lambda family: family.MODEL_TYPE)
def test_a_language_model_becomes_one_of_spans_though_its_trunk_has_another_name_there(family, tmp_path):
    net, new = (network(family, family.TINY, head) for head in ("causal_lm", "span"))
    params = build.parameters(net, None, seed=0, reset_head=False)[0]
    hf_save.save(tmp_path / "lm", params, net.table, dtype="float32", shapes=net.stored)
    found, said = build.parameters(new, tmp_path / "lm", seed=1, reset_head=False)
    assert [text.split(":")[0] for text in said] == ["new, not in the checkpoint", "dropped, of another head"]
    jax.tree.map(np.testing.assert_array_equal, found["blocks"], params["blocks"])
    hf_save.save(tmp_path / "span", found, new.table, dtype="float32", shapes=new.stored)
    back, said = build.parameters(net, tmp_path / "span", seed=1, reset_head=False)
    assert len(said) == 2
    jax.tree.map(np.testing.assert_array_equal, back["blocks"], params["blocks"])


# ---- Phi-3's rotary positions ----

FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.0, 3.0]}


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_phi3_means_longrope_by_three_names(name, key):
    older = {"rope_parameters": ABSENT, "rope_theta": 500.0, "partial_rotary_factor": 0.75}
    cfg = read(phi3, phi3.TINY, **older, rope_scaling={key: name, **FACTORS}, original_max_position_embeddings=16)
    assert cfg == phi3.VARIANTS["longrope-beyond"]
    assert read(phi3, cfg, original_max_position_embeddings=ABSENT).rope["original_max_position_embeddings"] == 4096
    newer = {"rope_scaling": ABSENT, "rope_theta": ABSENT, "partial_rotary_factor": ABSENT}
    assert read(phi3, cfg, **newer) == cfg
    assert set(hub(phi3, cfg)["rope_scaling"]) == {"type", "short_factor", "long_factor"}, "all that 4.57 allows"


def test_what_a_family_does_not_turn_is_refused():
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match=r"rope=\{.*'linear'.*\} is not supported by this family"):
        dataclasses.replace(phi3.TINY, rope=linear)
    long = phi3.VARIANTS["longrope-beyond"].rope
    with pytest.raises(UserError, match=r"'attention_factor': 2.0.* without options beside"):
        dataclasses.replace(phi3.TINY, rope={**long, "attention_factor": 2.0})
    with pytest.raises(UserError, match=r"partial_rotary_factor=0.5 is not supported by this family"):
        read(llama, llama.TINY, partial_rotary_factor=0.5)


# ---- GPT-2 ----


def test_the_first_gpt2_on_the_hub_has_no_prefix_and_keeps_its_masks(tmp_path):
    net = network(gpt2, gpt2.VARIANTS["tied-scaled-by-layer"])
    params = build.parameters(net, None, seed=0, reset_head=False)[0]
    hf_save.save(tmp_path, params, net.table, dtype="float32", shapes=net.stored)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(net.cfg.layers):
        old[f"h.{layer}.attn.bias"] = np.tri(net.cfg.positions, dtype=np.float32)[None, None]
        old[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    again, said = build.parameters(net, tmp_path, seed=1, reset_head=False)
    assert not said
    hf_save.save(tmp_path / "again", again, net.table, dtype="float32", shapes=net.stored)
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def network(family, cfg, head="causal_lm"):
    c = tiny.config()
    options = dict(outputs=2, model=c.model, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return build.network(family, cfg, head=head, **options)


def test_what_gpt2_adds_to_the_residual_stream_begins_smaller():
    net = network(gpt2, dataclasses.replace(gpt2.TINY, layers=8, init_std=0.1))
    values = build.initialise(net, seed=0)
    small = {"blocks/attn/out/kernel", "blocks/mlp/down/kernel"}
    for path, value in values.items():
        if path.endswith("kernel"):
            np.testing.assert_allclose(np.std(value), 0.1 / 4 if path in small else 0.1, rtol=0.05, err_msg=path)


def test_gpt2s_width_is_null_or_left_out_or_a_number():
    assert read(gpt2, gpt2.TINY, n_inner=None).d_ff == read(gpt2, gpt2.TINY, n_inner=ABSENT).d_ff == 128
    assert read(gpt2, gpt2.TINY, n_inner=48).d_ff == 48
