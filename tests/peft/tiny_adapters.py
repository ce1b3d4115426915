"""Tiny networks with bottleneck adapters, their inputs, and folders of them: what the tests of adapters share."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from jaxft import adapters, build
from jaxft.hf.layout import parts, rows
from jaxft.models import MODELS
from jaxft.peft import adapterhub
from jaxft.peft.bottleneck import Houlsby, Pfeiffer
from jaxft.registry import lookup
from tests import tiny
from tests.golden.make_bottleneck import FIELDS, IDS_BL, KINDS, TARGET_IDS_BT, numbers

BOTH = pytest.mark.parametrize("method", [Houlsby(reduction=4), Pfeiffer(reduction=4)], ids=["houlsby", "pfeiffer"])
HEADS = {"bert": "sequence", "gpt2": "causal_lm", "mixtral": "causal_lm", "bart": "seq2seq_lm", "t5": "seq2seq_lm"}


def network(name, peft=None, *, head="", cfg=None, **model):
    """A network of a family, `cfg` None: that of the numbers of the library."""
    c, family = tiny.config(), lookup(MODELS, name, "model.name")
    return build.network(
        family,
        family.config_from_hf({"model_type": name, **FIELDS[name]}) if cfg is None else cfg,
        head=head or HEADS[name],
        outputs=2,
        model=dataclasses.replace(c.model, **model),
        rules=c.sharding,
        mesh=tiny.mesh(1),
        peft=peft,
    )


def tiny_network(name, peft=None, head="", **model):
    return network(name, peft, head=head, cfg=lookup(MODELS, name, "model.name").TINY, **model)


def batch_of(ids_BL, target_ids_BT):
    def row(ids):
        return (
            ids.astype(np.int32),
            np.ones_like(ids, np.int32),
            np.arange(ids.shape[1], dtype=np.int32)[None] + 0 * ids,
        )

    ids, segment, position = row(ids_BL)
    batch = {"ids": ids, "segment": segment, "position": position.astype(np.int32), "type": 0 * ids}
    ids, segment, position = row(target_ids_BT)
    batch |= {"target_ids": ids, "target_segment": segment, "target_position": position.astype(np.int32)}
    return batch | {"first": np.zeros((len(ids), 1), np.int32)}


BATCH = batch_of(IDS_BL, TARGET_IDS_BT)


def drawn(net, seed=0):
    """Parameters with which adapters do something."""
    rng = np.random.default_rng(seed)
    new = {path: 0.3 * rng.standard_normal(net.abstract[path].shape, np.float32) for path in sorted(net.abstract)}
    return unflatten_dict({path: jax.numpy.asarray(array) for path, array in new.items()}, sep="/")


def save_model(folder, net):
    """The network of make_bottleneck.py as a folder of transformers."""
    table = rows(net.table)
    places = parts(table, {path: net.stored[path] for path in table})
    names = {name: places[path].whole for path, row in table.items() for _, name in row.tensors(net.stored[path])}
    tensors = {name: numbers(name, whole) for name, whole in names.items()}
    if "final_logits_bias" in tensors:  # no parameter there
        tensors["final_logits_bias"] *= 0
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")


def save_adapter(folder, net, kind, **config):
    """Its adapter as a folder of the `adapters` library."""
    fields, own = net.peft.to_hub(
        adapters.modules(net, "adapters"), {path: np.zeros(net.stored[path]) for path in net.added}, None
    )
    names = {name.replace(f".{adapterhub.NAME}.", ".golden."): array.shape for name, array in own.items()}
    section = {
        "model_class": "",
        "name": "golden",
        "version": "adapters.1.3.0",
        "config": {**fields["config"], **KINDS[kind], **config},
    }
    folder.mkdir()
    save_file({name: numbers(name, shape) for name, shape in names.items()}, folder / adapterhub.WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps(section))
