"""Every family on eight devices, with the loss and gradients of one; and bfloat16 checkpoints in several files."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft import build, sharding
from jaxft.hf import files
from jaxft.hf import save as hf_save
from jaxft.layers.loss import softmax_cross_entropy
from tests import tiny
from tests.hf.test_every_export import random_parameters
from tests.models.test_parity import ANSWERS, FAMILIES, batch_of, outputs, texts

pytestmark = pytest.mark.slow

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = (EIGHT, {"context": 2, "fsdp": 2, "tensor": 2})
MORE = {"context": 4, "data": 2}  # for one family of each kind of attention
KINDS = ("bert", "llama", "gemma2", "modernbert", "mixtral", "t5", "deberta-v2")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32; never loosened


def head_of(family):
    """The head with the largest tables: over the vocabulary, where there is one."""
    return next((head for head in family.HF_HEADS if head.endswith("_lm")), "sequence")


def network(family, sizes, **model):
    c = tiny.config()
    on = tiny.mesh(**sizes) if sizes else tiny.mesh(devices=1)
    head = head_of(family)
    options = dict(outputs=outputs(head), model=dataclasses.replace(c.model, **model), rules=c.sharding, mesh=on)
    return build.network(family, family.TINY, head=head, **options)


def batch(family):
    """Four rows, two of them packed."""
    one, two, three = texts(family)
    return batch_of([[one], [two, three], [two], [three, two]], length=40)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_on_eight_devices_are_those_of_one(name):
    """Rows of 40 tokens are cut over `context`, through their texts; targets are of 31, which stay whole."""
    family = FAMILIES[name]
    rows = batch(family)
    results, meshes = [], [*MESHES, MORE] if name in KINDS else MESHES
    for sizes in ({}, *meshes):
        net = network(family, sizes)
        params = random_parameters(net)
        held = jax.device_put(rows, sharding.batch_sharding(net.mesh, net.activations))

        def loss(params, batch, net=net):
            logits = net.forward(params, batch)
            ids = batch["target_ids" if net.head == ANSWERS else "ids"]
            labels = batch["first"] if logits.shape[1] == batch["first"].shape[1] else ids
            total, weight = softmax_cross_entropy(logits, labels % logits.shape[-1], (labels > 0).astype(float))
            return total / weight

        value, grads = jax.jit(jax.value_and_grad(loss))(params, held)
        results.append((value, flatten_dict(grads, sep="/")))
        if "fsdp" in sizes:
            cut = [path for path, leaf in net.abstract.items() if not leaf.sharding.is_fully_replicated]
            assert len(cut) > len(net.abstract) / 4, "matrices are sharded"
    (value, grads), *sharded = results
    for sizes, (ours, our_grads) in zip(meshes, sharded, strict=True):
        np.testing.assert_allclose(ours, value, **TOLERANCE, err_msg=str(sizes))
        for path, expected in grads.items():
            np.testing.assert_allclose(our_grads[path], expected, **TOLERANCE, err_msg=f"{sizes}: {path}")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bfloat16_checkpoint_in_several_files_comes_back_bit_for_bit(name, tmp_path):
    net = network(FAMILIES[name], EIGHT, param_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype("bfloat16"), random_parameters(net))
    written = hf_save.save(tmp_path / "a", params, net.table, dtype="bfloat16", shard_bytes=20_000, shapes=net.stored)
    assert len(written) > 2 and (tmp_path / "a" / files.INDEX).exists()
    loaded, said = build.parameters(net, tmp_path / "a", seed=0, reset_head=False)
    assert not said
    hf_save.save(tmp_path / "b", loaded, net.table, dtype="bfloat16", shard_bytes=20_000, shapes=net.stored)
    for name in (*written, files.INDEX):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
