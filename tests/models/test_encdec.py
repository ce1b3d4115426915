"""What the families of encoder-decoders read of the hub beside what every family does."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft.hf import save as hf_save
from jaxft.models import bart, marian, mt5, t5
from jaxft.registry import UserError
from tests.hf.test_every_export import network, random_parameters
from tests.models.test_parity import load


def hub(family, **changed):
    fields = json.loads(json.dumps(family.config_to_hf(family.TINY)))
    return {**fields, "model_type": family.MODEL_TYPE, **changed}


@pytest.mark.parametrize(
    ("flags", "tied"),
    [
        ({}, True),  # google-t5/t5-small
        ({"tie_word_embeddings": False}, False),  # google/flan-t5-small
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # the same, saved by transformers 5
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ],
)
def test_t5_knows_its_version_by_the_flags_of_either_transformers(flags, tied):
    fields = hub(t5)
    del fields["tie_word_embeddings"], fields["scale_decoder_outputs"]
    assert t5.config_from_hf({**fields, **flags}).tied is tied


def test_mt5_is_never_tied_whatever_its_file_says():
    assert mt5.config_from_hf(hub(mt5, tie_word_embeddings=True)) == mt5.TINY
    assert mt5.config_to_hf(mt5.TINY)["tie_word_embeddings"] is False


def test_a_head_of_its_own_that_is_not_there_begins_as_the_words_and_is_exported(tmp_path):
    """transformers 5 ties a new T5 1.1 and saves it without lm_head.weight."""
    net = network(t5, "seq2seq_lm", t5.TINY)
    hf_save.save(tmp_path, random_parameters(net), net.table, dtype="float32", shapes=net.stored)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hub(t5)))
    net, params = load(t5, tmp_path, "seq2seq_lm")
    np.testing.assert_array_equal(params["head"]["unembed"]["table"], params["embed"]["word"]["table"])
    hf_save.save(tmp_path / "again", params, net.table, dtype="float32", shapes=net.stored)
    again = load_file(tmp_path / "again" / "model.safetensors")
    np.testing.assert_array_equal(again["lm_head.weight"], tensors["shared.weight"])


@pytest.mark.parametrize(("head", "other"), [("sequence", "span"), ("span", "sequence")])
def test_a_head_is_put_on_weights_that_were_saved_under_another_with_other_names(head, other, tmp_path):
    from jaxft import build

    saved, net = network(t5, head, t5.TINY), network(t5, other, t5.TINY)
    params = random_parameters(saved)
    hf_save.save(tmp_path, params, saved.table, dtype="float32", shapes=saved.stored)
    loaded, said = build.parameters(net, tmp_path, seed=0, reset_head=False)
    np.testing.assert_array_equal(loaded["decoder"]["norm"]["scale"], params["decoder"]["norm"]["scale"])
    assert [text.split(":")[0] for text in said] == ["new, not in the checkpoint", "dropped, of another head"]


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        (t5, {"tie_word_embeddings": False, "scale_decoder_outputs": True}, "scale_decoder_outputs=True"),
        (t5, {"dense_act_fn": "relu"}, "dense_act_fn='relu' contradicts feed_forward_proj='gated-gelu'"),
        (t5, {"feed_forward_proj": "gated-gleu"}, 'did you mean "gelu"'),
        (t5, {"relative_attention_num_buckets": 6}, "buckets=6 must be a multiple of 4"),
        (bart, {"normalize_before": True}, "normalize_before=True"),
        (bart, {"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1"),
        (bart, {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        (bart, {"num_hidden_layers": 7}, "num_hidden_layers=7 contradicts encoder_layers=2"),
        (marian, {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=False"),
        (marian, {"decoder_vocab_size": 50}, "decoder_vocab_size=50"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(family, changed, message):
    with pytest.raises(UserError, match=message):
        family.config_from_hf(hub(family, **changed))


def test_fields_of_old_files_that_change_nothing_are_read():
    old = dict(num_hidden_layers=2, normalize_before=False, extra_pos_embeddings=2, num_beams=4, forced_bos_token_id=0)
    assert bart.config_from_hf(hub(bart, **old, normalize_embedding=True)) == bart.TINY
    assert (
        marian.config_from_hf(hub(marian, **old, static_position_embeddings=True, bad_words_ids=[[9]])) == marian.TINY
    )
    derived = dict(is_gated_act=True, dense_act_fn="gelu_new", is_encoder_decoder=False, num_decoder_layers=None)
    assert t5.config_from_hf(hub(t5, **derived)) == dataclasses.replace(t5.TINY, decoder_layers=0)
