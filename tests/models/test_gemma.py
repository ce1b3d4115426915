"""What config.json of a Gemma may leave out or say in an older way; the numbers are tested in test_parity.py."""

import json

import pytest

from jaxft.models import gemma2, gemma3_text
from jaxft.models.gemma_like import FULL, SLIDING
from jaxft.registry import UserError

# As on the hub, where what equals the class's default is often left out.
LINEAR = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
FILES = {
    "gemma2-2b": dict(model_type="gemma2", sliding_window=4096, cache_implementation="hybrid", rope_theta=10000.0),
    "gemma2-9b": dict(
        model_type="gemma2", num_hidden_layers=42, hidden_act="gelu_pytorch_tanh", sliding_window_size=4096
    ),
    "gemma3-1b": dict(
        model_type="gemma3_text",
        num_attention_heads=4,
        num_key_value_heads=1,
        hidden_size=1152,
        rope_local_base_freq=20000,
        rope_theta=500000,
        rope_scaling=None,
        sliding_window=512,
        sliding_window_pattern=4,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma3-4b": dict(model_type="gemma3_text", hidden_size=2560, num_hidden_layers=34, sliding_window=1024, **LINEAR),
    "embedding": dict(model_type="gemma3_text", sliding_window=512, use_bidirectional_attention=True),
    "all-defaults": dict(model_type="gemma3_text"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_hub_is_read_as_transformers_reads_it(name):
    import transformers

    hub = FILES[name]
    family = gemma2 if hub["model_type"] == "gemma2" else gemma3_text
    theirs = json.loads(transformers.AutoConfig.for_model(**hub).to_json_string(use_diff=False))
    cfg = family.config_from_hf(hub)
    assert family.config_from_hf(theirs) == cfg
    assert family.config_from_hf({**family.config_to_hf(cfg), "model_type": hub["model_type"]}) == cfg


def test_the_kinds_of_layers_repeat_to_the_end():
    assert gemma2.Config(layers=3).kinds() == [SLIDING, FULL, SLIDING]
    hub = {"model_type": "gemma2", "num_hidden_layers": 5, "layer_types": [FULL, FULL, SLIDING, FULL, FULL]}
    assert gemma2.config_from_hf(hub).pattern == (FULL, FULL, SLIDING)
    hub["layer_types"][4] = SLIDING
    assert gemma2.config_from_hf(hub).pattern == tuple(hub["layer_types"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layer_types": [FULL]}, "layer_types has 1 items for 26 layers"),
        ({"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
        ({"sliding_window": None}, "window=None must be int"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters has rope_type"),
        ({"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "'factor': 2.0"),
        ({"rope_parameters": {FULL: {"partial_rotary_factor": 0.5}}}, "partial_rotary_factor=0.5"),
        ({"use_bidirectional_attention": True, "sliding_window": 1}, "window=1"),
    ],
)
def test_what_a_gemma_3_cannot_have_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        gemma3_text.config_from_hf({"model_type": "gemma3_text", **fields})
