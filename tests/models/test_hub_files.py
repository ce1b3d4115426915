"""What files of the hub say beside the fields that transformers writes today, and what a broken one is answered."""

import dataclasses

import pytest

from jaxft import build
from jaxft.models import MODELS, bart, deberta_v2, gpt2, llama, modernbert, phi3, qwen2, roberta, xlm_roberta
from jaxft.registry import UserError, lookup
from tests import tiny

OLDER = {  # of Phi-3-mini, Qwen2.5-0.5B, bart-large-cnn, SmolLM2, the first Llama
    "code that became part of transformers": (phi3, {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}),
    "positions of images, off": (qwen2, {"use_mrope": False}),
    "how texts are generated": (bart, {"force_bos_token_to_be_generated": True}),
    "what nobody reads": (llama, {"is_llama_config": True, "rope_interleaved": False, "max_sequence_length": 2048}),
}


def hub(family, **fields):
    return {**family.config_to_hf(family.TINY), "model_type": family.MODEL_TYPE, **fields}


@pytest.mark.parametrize("case", OLDER)
def test_fields_of_older_files_that_change_no_number_are_passed_over(case):
    family, fields = OLDER[case]
    assert family.config_from_hf(hub(family, **fields)) == family.config_from_hf(hub(family))


FAMILIES = [lookup(MODELS, name, "model.name") for name in MODELS]
OTHERS = [family for family in FAMILIES if family.KIND != "encdec"]


@pytest.mark.parametrize("family", OTHERS, ids=lambda family: family.MODEL_TYPE)
def test_a_file_that_says_it_is_no_encoder_decoder_is_believed(family):
    assert family.config_from_hf(hub(family, is_encoder_decoder=False)) == family.config_from_hf(hub(family))


def test_a_family_that_transformers_brings_under_the_same_name_but_with_code_of_its_own_is_refused():
    with pytest.raises(UserError, match=r"auto_map asks for Python code.*or take auto_map out if this is a plain gpt2"):
        gpt2.config_from_hf(hub(gpt2, auto_map={"AutoModel": "modeling_other.Other"}))


def test_the_length_of_a_vocabulary_that_is_left_out_is_that_of_the_family():
    files = [{name: value for name, value in hub(f).items() if name != "vocab_size"} for f in (roberta, xlm_roberta)]
    assert [roberta.config_from_hf(files[0]).vocab, xlm_roberta.config_from_hf(files[1]).vocab] == [50265, 30522]


ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 10}


def test_yarn_without_its_factor_stretches_to_the_length_of_the_file_and_says_so_in_an_export():
    rope = {**ROPE, "rope_type": "yarn", "factor": None}
    cfg = llama.config_from_hf(hub(llama, rope_parameters=rope, rope_scaling=None, max_position_embeddings=40))
    assert cfg.rope["factor"] == llama.config_to_hf(cfg)["rope_scaling"]["factor"] == 4.0


def test_longrope_with_a_factor_of_its_own_says_what_it_multiplies_by():
    """Version 4 of transformers would take the quotient of the two lengths instead."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {**ROPE, **factors, "rope_type": "longrope", "factor": 3.0}
    cfg = llama.config_from_hf(hub(llama, rope_parameters=rope, rope_scaling=None, max_position_embeddings=40))
    assert llama.config_to_hf(cfg)["rope_scaling"]["attention_factor"] == pytest.approx(1.2153, abs=1e-4)


BROKEN = {
    "text for a number": (llama, {"hidden_size": "64"}, "d_model='64' must be int"),
    "null for an activation": (gpt2, {"activation_function": None}, "act=None must be str"),
    "null for a window": (modernbert, {"local_attention": None}, "window=None must be int"),
    "no heads": (
        deberta_v2,
        {"num_attention_heads": 0},
        "cannot be read as that of a deberta-v2 model.*ZeroDivisionError",
    ),
    "text for a scaling": (llama, {"rope_scaling": "linear"}, "cannot be read as that of a llama model"),
    "a rate above 1": (bart, {"dropout": 1.5}, "dropout=1.5 must be at least 0 and below 1"),
    "no epsilon": (llama, {"rms_norm_eps": 0.0}, "eps=0.0 must be above 0"),
    "fewer heads than none": (llama, {"num_key_value_heads": -1}, "kv_heads=-1 must be 0 or more"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_message_with_the_field(case):
    family, fields, message = BROKEN[case]
    section = dataclasses.replace(tiny.config().model, hf="somewhere", scratch={}, override={})
    with pytest.raises(UserError, match=message):
        build.family_config(section, hub(family, **fields), vocab=99, pad_id=0)


@pytest.mark.parametrize(("name", "value"), [("factor", 0), ("factor", "2"), ("rope_theta", "x"), ("beta_fast", -1)])
def test_an_option_of_positions_that_is_no_number_above_zero_is_refused(name, value):
    rope = {**ROPE, "rope_type": "yarn", "factor": 2.0, name: value}
    with pytest.raises(UserError, match=rf"rope {name}={value!r} must be a number above 0"):
        llama_rope = llama.config_from_hf(hub(llama, rope_parameters=rope, rope_scaling=None))
        build.network(
            llama,
            llama_rope,
            head="causal_lm",
            outputs=0,
            model=tiny.config().model,
            rules=tiny.config().sharding,
            mesh=tiny.mesh(devices=1),
        )
