"""A hub folder that writes: prompts of a file in any company, streams, conversations, draws, many devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxft import build
from jaxft.generator import Generator
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.hf.chat import Template
from jaxft.models import llama
from tests import tiny

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPTS = ["the café", "a cat sat on the mat; and then a dog", "x", "日本語", "of all the words"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with a byte-level tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("llama")
    tokenizer_of(path)
    cfg = dataclasses.replace(llama.TINY, vocab=300, positions=200)
    c = tiny.config()
    net = build.network(
        llama, cfg, head="causal_lm", outputs=2, model=c.model, rules=c.sharding, mesh=tiny.mesh(devices=1)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * 0.4).astype(np.float32) if x.ndim > 2 else np.ones(x.shape, np.float32),
        build.parameters(net, None, 0, reset_head=False)[0],
    )
    for name in ("embed", "head"):
        table = next(iter(params[name].values()))
        table["table"] = np.where(np.arange(384)[:, None] < 300, rng.normal(size=table["table"].shape), 0).astype("f4")
    save.save(path, params, net.table, dtype="float32", shapes=net.stored)
    (path / "config.json").write_text(json.dumps(hf_folder.config_of(net, {}, "float32")))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 77], "pad_token_id": 2}))
    return path


def tokenizer_of(path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(letters)])}
    made = Tokenizer(models.BPE(vocab, []))
    made.add_special_tokens(special)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(named))


def generator(folder, seed=0, batch=4, tensor=1, **flags):
    flags = {"max_new_tokens": 12, **flags}
    return Generator(str(folder), flags, dtype="float32", batch=batch, tensor=tensor, seed=seed)


def texts(made, prompts=PROMPTS, first=0):
    return made.write(made.ids(prompts, prompts), first)


@pytest.mark.parametrize("flags", [{}, {"temperature": 1.5}, {"num_beams": 3}], ids=["greedy", "drawn", "search"])
def test_texts_come_in_order_and_depend_neither_on_company_nor_on_the_mesh(folder, flags):
    together = texts(generator(folder, **flags))
    assert len(set(together)) == len(PROMPTS)
    assert texts(generator(folder, tensor=2, batch=8, **flags)) == together
    one = generator(folder, **flags)
    assert [texts(one, [prompt], i)[0] for i, prompt in enumerate(PROMPTS)] == together


def test_a_seed_gives_the_same_texts_and_another_seed_others(folder):
    draws = [texts(generator(folder, seed=seed, top_k=20)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("flags", [{}, {"temperature": 2.0}, {"num_beams": 2}], ids=["greedy", "drawn", "search"])
def test_a_stream_is_the_text_in_pieces_of_whole_letters(folder, flags):
    made = generator(folder, max_new_tokens=40, **flags)
    ids = made.ids(PROMPTS[:2], PROMPTS[:2])
    for number, whole in enumerate(made.write(ids)):
        pieces = list(made.stream(ids[number], number))
        assert "".join(pieces) == whole
        assert "num_beams" in flags or len(pieces) > 5


def test_a_second_stream_compiles_nothing(folder):
    made, compiled = generator(folder), []
    ids, other = made.ids(["some words", "others"], ["", ""])
    list(made.stream(ids))
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    try:
        assert list(made.stream(other))
        assert not compiled
        list(
            made.stream(made.ids(["a prompt longer than sixteen tokens"], [""])[0])
        )  # of which there is no program yet
        assert compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_letter_of_several_tokens_comes_whole(folder, monkeypatch):
    made = generator(folder, max_new_tokens=5)
    ids = made.encoder.whole(["é日"], special=False)[0]
    monkeypatch.setattr(made, "_ended", lambda written: ids[: len(written)].tolist())
    assert list(made.stream(made.encoder.whole(["x"])[0])) == ["é", "日"]


def test_a_conversation_is_what_the_template_makes_of_it(folder):
    transformers = pytest.importorskip("transformers")
    said = [{"role": "system", "content": "é"}, {"role": "user", "content": "a <b>"}]
    said += [{"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        said, add_generation_prompt=True, tokenize=False
    )
    assert (
        Template(folder).prompt(said)
        == theirs
        == "<s><|system|>é</s><|user|>a <b></s><|assistant|>c</s><|user|>d</s><|assistant|>"
    )
    ids = generator(folder).ids([theirs], ["here"], special=False)[0]
    assert ids[0] == 0 and (ids == 0).sum() == 1
