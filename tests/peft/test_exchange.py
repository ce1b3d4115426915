"""Adapters here and in the `peft` library are the same: outputs agree both ways, whoever wrote them."""

import json

import numpy as np
import pytest

from jaxft import adapters, exporting, verify
from jaxft.hf import adapters as files
from jaxft.hf import hub
from jaxft.peft import exchange
from jaxft.peft.lora import Lora
from jaxft.peft.prefix import Prefix
from jaxft.peft.prompt import Prompt
from jaxft.registry import UserError
from tests.peft import made

# Of the peft library about transformers, and about a base that is not on the hub.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]
TOLERANCE = 1e-5  # of float32 logits; never loosened
FAMILIES = {
    "bert": "sequence",
    "llama": "causal_lm",
    "qwen3": "causal_lm",
    "t5": "seq2seq_lm",
    "gpt2": "causal_lm",  # its three projections are one Conv1D on the hub
    "mixtral": "causal_lm",
}
METHODS = {
    "lora": Lora(),
    "dora": Lora(target="all-linear", rank=4, rslora=True, dora=True),
    "pissa": Lora(target=(r".*/attn/(q|v)",), rank=3, init="pissa"),  # of a fused projection the third part is zero
}


# A PiSSA is written as a LoRA: one family says enough, and one whose projections are fused.
CASES = [(name, method) for name in FAMILIES for method in METHODS if method != "pissa" or name in ("bert", "gpt2")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_peft_computes_what_we_do_and_reads_and_writes_the_same_files(name, method, tmp_path):
    pytest.importorskip("peft")
    make = made.maker(name, FAMILIES[name])
    net = make(peft=METHODS[method])
    first = made.parameters(net)
    params = made.moved(net, first, by=0.03)  # T5, whose scores are not scaled, makes more of what is rounded
    made.write_base(tmp_path / "base", make(), first)
    made.write_adapter(tmp_path / "ours", net, params, tmp_path / "base")
    batch, given = made.texts(net)
    ours = made.logits(net, params, batch)
    theirs = made.with_peft(net, tmp_path / "base", tmp_path / "ours")
    assert np.abs(made.their_logits(theirs, net, batch, given) - ours).max() <= TOLERANCE
    assert np.abs(made.logits(net, first, batch) - ours).max() > 1e-2, "the adapter changes nothing"
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for folder in ("ours", "theirs"):
        again, adapter = adapters.network(make, tmp_path / folder)
        read = adapters.applied(again, first_of(again, first), adapter)
        assert np.abs(made.logits(again, read, batch) - ours).max() <= TOLERANCE, folder


@pytest.mark.slow
@pytest.mark.parametrize("saves", [(), ("blocks/attn_norm",)])
def test_images_are_judged_alike_though_transformers_calls_modules_otherwise_than_its_files(tmp_path, saves):
    """Names of before are read as well."""
    pytest.importorskip("peft")
    make = made.maker("vit", "sequence")
    net = make(peft=Lora(target="all-linear", modules_to_save=saves))
    params = made.moved(net, made.parameters(net))
    made.write_base(tmp_path / "base", net, params)
    made.write_adapter(tmp_path / "adapter", net, params, tmp_path / "base")
    difference, reader = verify.largest_difference(tmp_path / "adapter", net, params, "float32")
    assert difference <= TOLERANCE and reader == "transformers"
    tensors = files.load(tmp_path / "adapter")
    assert any(".vit.layers.0.attention.q_proj." in name for name in tensors)
    older = {name.replace("vit.layers.0.attention.q_proj", "vit.encoder.layer.0.attention.attention.query"): array
             for name, array in tensors.items()}  # fmt: skip
    files.save(tmp_path / "adapter", older)
    again, adapter = adapters.network(make, tmp_path / "adapter")
    batch, _ = verify._images(net)
    read = adapters.applied(again, first_of(again, params), adapter)
    assert np.abs(made.logits(again, read, batch) - made.logits(net, params, batch)).max() <= TOLERANCE


def first_of(net, first):
    """Parameters for `net` that begin with those of the base."""
    base, own = made.plain(first), made.parameters(net)
    return joined(own, base)


def joined(a, b):
    return {k: joined(v, b[k]) if isinstance(v, dict) and k in b else b.get(k, v) for k, v in a.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_merged_weights_compute_what_the_adapter_does(name, method):
    make = made.maker(name, FAMILIES[name])
    net = make(peft=METHODS[method])
    params = made.moved(net, made.parameters(net))
    batch, _ = made.texts(net)
    merged = made.logits(make(), adapters.merged(net, params), batch)
    assert np.abs(merged - made.logits(net, params, batch)).max() <= TOLERANCE


@pytest.fixture
def folder(tmp_path):
    """An adapter of the tiny BERT."""
    net = made.maker("bert", "sequence")(peft=Lora())
    made.write_adapter(tmp_path / "adapter", net, made.parameters(net), "some/base")
    return tmp_path / "adapter"


def test_an_adapter_of_a_model_of_other_sizes_is_refused_with_the_dimensions(folder):
    with pytest.raises(UserError, match=r"adapter of another model: .*lora_A.weight is \[8, 32\].* needs \[rank, 48\]"):
        wide = made.maker("bert", "sequence")
        import dataclasses
        import functools

        cfg = dataclasses.replace(wide.args[1], d_model=48)
        adapters.network(functools.partial(wide.func, wide.args[0], cfg, **wide.keywords), folder)


def test_an_adapter_of_another_family_is_refused_with_what_has_no_place(folder):
    with pytest.raises(UserError, match=r"has no place for base_model.model.bert.encoder"):
        adapters.network(made.maker("llama", "sequence"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "OFT"}, "peft_type='OFT' is not known; known: .*LORA"),
        ({"init_lora_weights": "olora"}, "save it with path_initial_model_for_weight_conversion"),
        ({"alora_invocation_tokens": [7]}, r"alora_invocation_tokens=\[7\] of adapter_config.json is not supported"),
        ({"use_qalora": True}, "use_qalora=True of adapter_config.json is not supported; merge the adapter"),
    ],
)
def test_a_config_that_says_something_else_is_refused(folder, change, message):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        adapters.network(made.maker("bert", "sequence"), folder)


@pytest.mark.parametrize(
    "kind", ["LoraConfig", "AdaLoraConfig", "IA3Config", "PrefixTuningConfig", "PromptTuningConfig"]
)
def test_a_config_of_peft_says_nothing_that_is_not_known(kind):
    peft = pytest.importorskip("peft")
    given = {"AdaLoraConfig": {"total_step": 10}}.get(kind, {})
    config = getattr(peft, kind)(**given)
    exchange.check_fields({name: getattr(value, "value", value) for name, value in config.to_dict().items()}, "folder")


def test_no_run_begins_from_an_adapter_and_the_way_is_told(folder):
    with pytest.raises(UserError, match=r"is an adapter, and a whole model is needed: merge it first"):
        hub.resolve(str(folder))


def test_pickled_weights_are_never_read(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.safetensors"):
        adapters.network(made.maker("bert", "sequence"), folder)


def test_dora_of_some_layers_only_is_refused(tmp_path):
    net = made.maker("bert", "sequence")(peft=Lora(dora=True))
    made.write_adapter(tmp_path / "adapter", net, made.parameters(net), "some/base")
    tensors = files.load(tmp_path / "adapter")
    files.save(tmp_path / "adapter", {name: array for name, array in tensors.items() if ".layer.1." not in name})
    with pytest.raises(UserError, match="DoRA of some layers of a stack only"):
        adapters.network(made.maker("bert", "sequence"), tmp_path / "adapter")


def test_a_config_without_what_every_adapter_has_is_one_message(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be read as an adapter: KeyError: 'lora_alpha'"):
        adapters.network(made.maker("bert", "sequence"), folder)


def test_what_peft_would_train_apart_is_not_trained(tmp_path):
    import dataclasses

    make = made.maker("gpt2", "causal_lm")
    cfg = dataclasses.replace(make.args[1], tied=True)
    net = make.func(make.args[0], cfg, **make.keywords, peft=Lora(modules_to_save=("embed/word",)))
    with pytest.raises(UserError, match="embed/word/table, which is the table of the head as well"):
        exporting.check(net, "some/base")
    with pytest.raises(UserError, match="the model begins with random weights"):
        exporting.check(make(peft=Lora()), "")


def test_what_the_library_would_not_put_before_texts_is_not_trained():
    for method, name in ((Prompt(tokens=2), "prompt"), (Prefix(tokens=2), "prefix")):
        for head in ("masked_lm", "span"):
            with pytest.raises(UserError, match=r"the `peft` library would compute something else"):
                exporting.check(made.maker("bert", head)(peft=method), "some/base")
        exporting.check(made.maker("llama", "causal_lm")(peft=method), name)


def test_answers_are_written_without_the_task_whose_class_drops_token_types(tmp_path):
    net = made.maker("bert", "span")(peft=Lora())
    made.write_adapter(tmp_path / "adapter", net, made.parameters(net), "some/base")
    assert files.read_config(tmp_path / "adapter")["task_type"] is None


def test_what_a_model_lacks_and_would_never_train_is_refused():
    drawn = "head/transform/dense/kernel"
    new = [drawn, "head/transform/dense/bias", "head/transform/norm/scale"]
    make = made.maker("bert", "masked_lm")
    with pytest.raises(UserError, match=rf"has no {drawn}, which would.*modules_to_save=\"\('head/transform/dense',\)"):
        exporting.check_new(make(peft=Lora()), new, "some/base")
    exporting.check_new(make(peft=Lora(modules_to_save=("head/transform/dense",))), new, "some/base")
    exporting.check_new(make(), new, "some/base")
    exporting.check_new(made.maker("bert", "sequence")(peft=Lora()), ["head/classifier/kernel"], "some/base")
