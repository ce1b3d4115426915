"""A hub folder of a tiny random Llama, with a tokenizer of bytes and a chat template: what tests of texts share."""

import dataclasses
import json

import jax
import numpy as np

from jaxft import build
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.models import llama
from tests import tiny

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SAYS = {"eos_token_id": [1, 77], "pad_token_id": 2}  # its generation_config.json
TINY = dataclasses.replace(llama.TINY, vocab=300, positions=200)


def network(cfg):
    c = tiny.config()
    on = tiny.mesh(devices=1)
    return build.network(llama, cfg, head="causal_lm", outputs=2, model=c.model, rules=c.sharding, mesh=on)


def make(path, cfg=TINY):
    net = network(cfg)
    tokenizer(path)
    save.save(path, parameters(net), net.table, dtype="float32", shapes=net.stored)
    (path / "config.json").write_text(json.dumps(hf_folder.config_of(net, {}, "float32")))
    (path / "generation_config.json").write_text(json.dumps(SAYS))
    return path


def parameters(net):
    """Drawn so wide that every token depends on those before it."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * 0.4).astype(np.float32) if x.ndim > 2 else np.ones(x.shape, np.float32),
        build.parameters(net, None, 0, reset_head=False)[0],
    )
    for name in ("embed", "head"):
        table = next(iter(params[name].values()))
        rows = np.arange(len(table["table"]))[:, None]
        table["table"] = np.where(rows < net.cfg.vocab, rng.normal(size=table["table"].shape), 0).astype(np.float32)
    return params


def tokenizer(path):
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
