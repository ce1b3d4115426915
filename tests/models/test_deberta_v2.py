"""DeBERTa beyond what holds for every family: v3's files, its masked-LM head, what is refused, other ways to run."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxft import build
from jaxft.hf import folder as hf_folder
from jaxft.hf import save as hf_save
from jaxft.models import deberta_v2
from jaxft.registry import UserError
from tests import tiny
from tests.models import test_parity as parity

# What the file of a v3 checkpoint says, but for its sizes.
V3 = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 0,
    "vocab_size": 99,
}


def network(head, cfg=deberta_v2.VARIANTS["v3"], **model):
    c = tiny.config()
    section = dataclasses.replace(c.model, **model)
    options = dict(outputs=5, model=section, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return build.network(deberta_v2, cfg, head=head, **options)


def test_the_file_of_a_v3_checkpoint_is_understood():
    assert deberta_v2.config_from_hf(V3) == deberta_v2.VARIANTS["v3"]
    no_terms = {name: value for name, value in V3.items() if name != "norm_rel_ebd"}
    plain = deberta_v2.config_from_hf(no_terms | {"relative_attention": False, "pos_att_type": "None"})
    assert plain.terms == () and not plain.norm_distances


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_attention": False}, r"relative_attention=False with pos_att_type='p2c\|c2p'"),
        ({"pos_att_type": None}, "relative_attention=True with pos_att_type=None"),
        ({"pos_att_type": ["p2p"]}, "p2p; known: c2p, p2c"),
        ({"norm_rel_ebd": "rms"}, "norm_rel_ebd='rms'"),
        ({"embedding_size": 16}, "embedding_size=16"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size=16"),
        ({"attention_head_size": 16}, "attention_head_size=16"),
        ({"conv_kernel_size": 3, "conv_groups": 2}, "conv_groups=2"),
        ({"conv_kernel_size": 4}, "conv=4: only an odd number"),
        ({"conv_kernel_size": 3, "conv_act": "tan"}, "conv_act='tan'.*did you mean \"tanh\""),
        ({"position_buckets": 80}, "buckets=80 are more than 40 distances fill"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        network("sequence", deberta_v2.config_from_hf(V3 | changes))


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    """A folder such as v3's: the head under its own name, that of pretraining, positions that nobody adds."""
    torch = pytest.importorskip("torch", reason="the checkpoint is made by transformers")
    import transformers

    folder = tmp_path_factory.mktemp("v3")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**V3, legacy=False, attn_implementation="eager")
    model = transformers.DebertaV2ForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_predictions.lm_head.dense.weight" in tensors
    tensors["deberta.embeddings.position_embeddings.weight"] = np.zeros((40, 32), np.float32)
    tensors["mask_predictions.dense.weight"] = np.zeros((32, 32), np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(V3))
    return SimpleNamespace(folder=folder, model=model)


def test_the_masked_lm_head_of_v3_is_read_and_exported_under_the_name_that_transformers_looks_for(v3, tmp_path):
    import transformers

    net = network("masked_lm")
    params, said = build.parameters(net, v3.folder, seed=0, reset_head=False)
    assert said == ["dropped, of another head: mask_predictions.dense.weight"]
    batch = parity.batch_of([[text] for text in parity.texts(deberta_v2)])
    case = SimpleNamespace(family=deberta_v2, head="masked_lm", net=net, model=v3.model)
    ours = np.asarray(jax.jit(net.forward)(params, batch))
    hf_save.save(tmp_path, params, net.table, dtype="float32", shapes=net.stored)
    (tmp_path / "config.json").write_text(json.dumps(hf_folder.config_of(net, {}, "float32")))
    again, report = transformers.DebertaV2ForMaskedLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    for model in (v3.model, again.eval()):
        theirs = parity.expected(SimpleNamespace(**{**vars(case), "model": model}), batch)
        for a, b in zip(parity.per_text(case, ours, batch), parity.per_text(case, theirs, batch), strict=True):
            np.testing.assert_allclose(a, b, **parity.TOLERANCE)


def test_another_head_on_a_v3_checkpoint_names_what_it_drops(v3):
    _, said = build.parameters(network("sequence"), v3.folder, seed=0, reset_head=False)
    assert "head/classifier/kernel" in said[0]
    assert "lm_predictions.lm_head.dense.weight" in said[1] and "mask_predictions.dense.weight" in said[1]


@pytest.mark.parametrize("how", [dict(scan=True), dict(remat="full"), dict(scan=True, remat="dots")], ids=str)
def test_scanned_and_rematerialised_layers_give_the_same_logits_and_gradients(how):
    """Layers share the table of distances and the first has a convolution: neither is a block's own."""
    cfg = dataclasses.replace(deberta_v2.TINY, layers=3)
    batch = parity.batch_of([[text] for text in parity.texts(deberta_v2)])

    def run(**model):
        net = network("sequence", cfg, **model)
        params = unflatten_dict(build.initialise(net, seed=0), sep="/")
        value, grads = jax.jit(jax.value_and_grad(lambda p: jnp.square(net.forward(p, batch)).sum()))(params)
        return value, flatten_dict(grads, sep="/")

    (value, grads), (expected, wanted) = run(**how), run()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, wanted[path], rtol=1e-4, atol=1e-6, err_msg=path)
