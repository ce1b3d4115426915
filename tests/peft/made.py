"""Tiny networks with adapters, and the same opened by transformers with the `peft` library."""

import dataclasses
import functools

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import build, exporting, verify
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.models import MODELS
from jaxft.registry import lookup
from tests import tiny

OUTPUTS = 3
LABELS = {
    "id2label": {str(i): str(i) for i in range(OUTPUTS)},
    "label2id": {str(i): i for i in range(OUTPUTS)},
}


def maker(name, head, **model):
    """`build.network` of a family's TINY, which takes `peft`."""
    family, c = lookup(MODELS, name, "model.name"), tiny.config()
    section = dataclasses.replace(c.model, **model)
    options = dict(head=head, outputs=OUTPUTS, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return functools.partial(build.network, family, family.TINY, model=section, **options)


def parameters(net, seed=0):
    return build.parameters(net, None, seed, False)[0]


def moved(net, params, by=0.1, seed=0):
    """`params` with noise on all that trains."""
    rng = np.random.default_rng(seed)
    flat = {
        path: leaf + by * rng.standard_normal(leaf.shape).astype(np.float32) if net.trains(path) else leaf
        for path, leaf in flatten_dict(params, sep="/").items()
    }
    return unflatten_dict(flat, sep="/")


def plain(params):
    """The parameters of the network alone."""
    flat = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if "/adapter/" not in path}
    return unflatten_dict(flat, sep="/")


def task(head):
    return LABELS if head in ("sequence", "token") else {}


def write_base(folder, net, params):
    folder.mkdir()
    save.save(folder, plain(params), net.table, dtype="float32", shapes=net.stored)
    save.save_json(folder, "config.json", hf_folder.config_of(net, task(net.head), "float32"))


def write_adapter(folder, net, params, base):
    exporting.write(folder, net, params, base=str(base), task=task(net.head), beside=lambda folder: None, card="")


def texts(net):
    return verify._texts(net)


def logits(net, params, batch):
    """Those of real tokens; padding's are nobody's."""
    found = np.asarray(jax.jit(net.forward)(params, batch))
    return real(net, found[:, 0] if net.head == "sequence" else found, batch)


def real(net, found, batch):
    return found if net.head == "sequence" else found[batch["segment"] > 0]


def with_peft(net, base, adapter):
    """The base with the adapter as the `peft` library opens them."""
    import peft
    import torch
    import transformers

    cls = getattr(transformers, net.family.HF_ARCHITECTURES[net.head])
    how = dict(dtype=torch.float32, attn_implementation="eager")
    model = cls.from_pretrained(str(base), config=transformers.AutoConfig.from_pretrained(str(adapter)), **how)
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def their_logits(model, net, batch, given):
    import torch

    with torch.no_grad():
        out = model(**{name: torch.from_numpy(array) for name, array in given.items()})
    return real(net, out.logits.numpy(), batch)
