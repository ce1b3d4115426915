"""Whole steps on rows that are cut over devices: losses and parameters are those of one device."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxft import build
from jaxft.layers import pieces as cutting
from jaxft.models import bert, llama
from jaxft.tasks.causal_lm import CausalLm
from tests import tiny

TOLERANCE = 1e-5  # float32; never loosened
# Dropout is on, as in training: its masks do not depend on the mesh, but for those of attention weights.
DROPPING = dataclasses.replace(bert.TINY, attention_dropout=0.0)


def rows(B=8, L=32):
    """Running text in packed documents of random lengths, which the cuts go through: each token's label is the next."""
    rng = np.random.default_rng(0)
    batch = {name: np.zeros((B, L), np.int32) for name in ("ids", "segment", "position", "label")}
    batch["ids"] = rng.integers(3, llama.TINY.vocab, (B, L)).astype(np.int32)
    ends = rng.random((B, L)) < 0.12
    batch["segment"] = (1 + np.cumsum(ends, 1)).astype(np.int32)
    batch["position"] = np.array([[(row[:i] == row[i]).sum() for i in range(L)] for row in batch["segment"]], np.int32)
    batch["label"] = np.roll(batch["ids"], -1, 1)
    inside = batch["segment"] == np.roll(batch["segment"], -1, 1)
    inside[:, -1] = False
    return batch | {"weight": inside.astype(np.float32)}


def learned(scan, devices, **sizes):
    """A causal LM's loss and its parameters after a step."""
    c, task = tiny.config(), CausalLm(text="text", metric="", z=1e-3)
    net = build.network(
        llama,
        llama.TINY,
        head=task.head,
        outputs=0,
        model=dataclasses.replace(c.model, scan=scan, remat="full"),
        rules=c.sharding,
        mesh=tiny.mesh(devices, **sizes),
    )
    params = unflatten_dict(build.initialise(net, seed=0), sep="/")
    return tiny.descended(net, task, params, rows(), accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "sizes"), [(True, dict(context=2, fsdp=2, tensor=2)), (False, dict(context=4, data=2))], ids=str
)
def test_a_causal_lm_learns_as_on_one_device(monkeypatch, scan, sizes):
    """Packed rows, recomputed layers, micro-batches, and logits of a few tokens at a time."""
    monkeypatch.setattr(cutting, "PIECE", 4 * 128 * 3)
    loss, params = learned(scan, 1)
    found, ours = learned(scan, 8, **sizes)
    np.testing.assert_allclose(found, loss, rtol=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE), ours, params)


def test_ten_steps_of_a_packed_classifier_have_the_losses_of_one_device():
    batches = [tiny.batch(seed=seed) for seed in range(10)]
    expected = tiny.Trainer(tiny.mesh(devices=1), cfg=DROPPING).run(batches)
    trainer = tiny.Trainer(tiny.mesh(context=2, fsdp=2, tensor=2), cfg=DROPPING)
    np.testing.assert_allclose(trainer.run(batches), expected, rtol=0, atol=TOLERANCE)
