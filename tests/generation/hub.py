"""Tiny random models of transformers that write texts, and what jaxft makes of them."""

import dataclasses

import jax
import numpy as np

from jaxft import build
from jaxft.generation import beam, write
from jaxft.hf import load as hf_load
from jaxft.models import MODELS
from jaxft.registry import lookup
from tests import tiny

HEADS = {"decoder": "causal_lm", "encdec": "seq2seq_lm"}
FAMILIES = {name: lookup(MODELS, name, "model.name") for name in MODELS}
FAMILIES = {name: family for name, family in FAMILIES.items() if HEADS.get(family.KIND) in family.HF_HEADS}
PAD, EOS = 0, 7
LENGTHS = (11, 4, 7)


def model_of(name, cfg, folder):
    """A model with random weights, large enough that each token depends on all before it; saved to `folder`."""
    import torch
    import transformers

    family = FAMILIES[name]
    head = HEADS[family.KIND]
    fields = {**family.config_to_hf(cfg), "attn_implementation": "eager", "use_cache": True}
    torch.manual_seed(0)
    model = getattr(transformers, family.HF_ARCHITECTURES[head])(transformers.AutoConfig.for_model(name, **fields))
    if head == "seq2seq_lm" and cfg.tied is False:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.normal_(1.0 if (tensor == 1).all() else 0.0, 0.4)
    model.eval().save_pretrained(folder)
    return model


def network(name, folder, *, devices=1, **sizes):
    family, c = FAMILIES[name], tiny.config()
    net = build.network(
        family,
        family.config_from_hf(hf_load.read_config(folder)),
        head=HEADS[family.KIND],
        outputs=2,
        model=c.model,
        rules=dataclasses.replace(c.sharding, activations={**c.sharding.activations, "B": ("data",)}),
        mesh=tiny.mesh(devices, **sizes),
    )
    params, said = build.parameters(net, folder, seed=0, reset_head=False)
    assert not said
    return net, params


def prompts(vocab, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [rng.integers(8, vocab, n).astype(np.int32) for n in lengths]


def batch_of(texts, length, start=None):
    """Texts that end where their rows do; or with `start` the sources of a decoder that begins with this token."""
    batch = {key: np.zeros((len(texts), length), np.int32) for key in ("ids", "segment", "position")}
    for row, ids in enumerate(texts):
        where = slice(length - len(ids), length) if start is None else slice(len(ids))
        batch["ids"][row, where], batch["segment"][row, where] = ids, 1
        batch["position"][row, where] = np.arange(len(ids))
    if start is not None:
        one = np.ones((len(texts), 1), np.int32)
        batch |= {"target_ids": one * start, "target_segment": one, "target_position": one * 0}
    return batch


def ours(net, params, texts, settings, length=12, rows=None):
    """What is written after each text, up to and with the token that ends it."""
    start = net.cfg.start_id if net.family.KIND == "encdec" else None
    batch = batch_of(texts, length, start)
    loop = beam if settings.beams > 1 else write
    key_B = write.keys(0, np.arange(len(texts)) if rows is None else np.asarray(rows))
    now = jax.jit(lambda params: loop.begin(net, params, batch, key_B, settings))(params)
    now = jax.jit(lambda params, now: loop.go_on(net, params, now, settings.new, settings))(params, now)
    ids = np.asarray(now.best_ids_BUM[:, 0] if loop is beam else now.ids_BM)
    return [cut(row[-settings.new :], settings.eos) for row in ids]


def cut(ids, eos):
    ends = np.flatnonzero(np.isin(ids, eos))
    return ids[: ends[0] + 1].tolist() if len(ends) else ids.tolist()


def theirs(model, texts, settings):
    import torch

    length = max(map(len, texts))
    encdec = model.config.is_encoder_decoder
    ids, mask = np.zeros((2, len(texts), length), np.int64)
    for row, text in enumerate(texts):
        where = slice(len(text)) if encdec else slice(length - len(text), length)
        ids[row, where], mask[row, where] = text, 1
    written = model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=settings.new,
        num_beams=settings.beams,
        eos_token_id=list(settings.eos) or None,
        pad_token_id=settings.pad,
        do_sample=False,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        renormalize_logits=settings.renormalize,
        repetition_penalty=float(settings.repetition_penalty),
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
    ).numpy()
    return [cut(row[1 if encdec else length :], settings.eos) for row in written]
