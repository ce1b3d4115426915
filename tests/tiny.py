"""A tiny BERT on any mesh, and random batches of packed rows: what the tests of the step share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from configs.bert_cls import get_config
from jaxft import build, scoring, sharding, state
from jaxft.config import parse
from jaxft.models import bert
from jaxft.optim import masks, schedules
from jaxft.optim.adamw import adamw
from jaxft.step import make_train_step, new_state
from jaxft.tasks.cls import Cls

ONE = dict(data=1, fsdp=1, tensor=1, context=1, expert=1)
TASK = Cls(text="text", pair="", label="label", metric="", smoothing=0.0, classes=("a", "b", "c"))
LENGTH, SLOTS = 16, 3


def config(**train):
    raw = get_config().to_dict()
    raw["train"].update(train)
    return parse(raw)


def mesh(devices=8, **sizes):
    return sharding.make_mesh(ONE | sizes, jax.devices()[:devices])


def network(on, c=None, cfg=bert.TINY, **model):
    c = c or config()
    section = dataclasses.replace(c.model, **model)
    return build.network(bert, cfg, head="sequence", outputs=3, model=section, rules=c.sharding, mesh=on)


def batch(rows=8, seed=0):
    """Rows of one to three segments with padding at the end."""
    rng = np.random.default_rng(seed)
    out = {
        "ids": np.zeros((rows, LENGTH), np.int32),
        "type": np.zeros((rows, LENGTH), np.int32),
        "segment": np.zeros((rows, LENGTH), np.int32),
        "position": np.zeros((rows, LENGTH), np.int32),
        "first": np.zeros((rows, SLOTS), np.int32),
        "label": np.zeros((rows, SLOTS), np.int32),
        "weight": np.zeros((rows, SLOTS), np.float32),
        "example": np.full((rows, SLOTS), -1, np.int32),
    }
    count = 0
    for row in range(rows):
        at = 0
        for slot in range(rng.integers(1, SLOTS + 1)):
            n = int(rng.integers(2, LENGTH // SLOTS + 1))
            where = slice(at, at + n)
            out["ids"][row, where] = rng.integers(1, bert.TINY.vocab, n)
            out["type"][row, where] = np.arange(n) >= n // 2
            out["segment"][row, where] = slot + 1
            out["position"][row, where] = np.arange(n)
            out["first"][row, slot] = at
            out["label"][row, slot] = rng.integers(0, 3)
            out["weight"][row, slot] = 1
            out["example"][row, slot] = count
            at, count = at + n, count + 1
    return out


def unpacked(packed):
    """The same examples, one a row, in the order of `example`."""
    rows = int(packed["example"].max()) + 1
    out = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in packed.items()}
    out["example"] -= 1
    for row, slot in zip(*np.nonzero(packed["weight"]), strict=True):
        n = packed["example"][row, slot]
        inside = packed["segment"][row] == slot + 1
        length = inside.sum()
        for name in ("ids", "type", "position"):
            out[name][n, :length] = packed[name][row, inside]
        out["segment"][n, :length] = 1
        out["label"][n, 0], out["weight"][n, 0], out["example"][n, 0] = packed["label"][row, slot], 1, n
    return out


def descended(net, task, params, batch, given=None, **train):
    """(mean loss, parameters) of one step of plain gradient descent by the step that runs take."""
    section = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "no_decay": ()}
    c = dataclasses.replace(config(clip=0.0, **train), optim=section)
    plan = state.plan(net, c, lambda step: 1.0)
    placed = scoring.to_device(batch, sharding.batch_sharding(net.mesh, net.activations))
    after, sums = state.training_step(net, task, plan, c)(
        plan.make(jax.tree.map(jnp.copy, params)), placed, given or {}
    )
    return float(sums["loss"][0] / sums["loss"][1]), jax.device_get(after.params)


class Trainer:
    """State and compiled step of the tiny BERT; `dropout` is on, as in training."""

    def __init__(self, on, *, lr=1e-3, cfg=bert.TINY, params=None, freeze=(), poisoned=False, **train):
        self.config = config(**{"freeze": freeze, **train})
        self.net = network(on, self.config, cfg)
        whole = unflatten_dict(build.initialise(self.net, seed=0), sep="/") if params is None else params
        tree = unflatten_dict(self.net.abstract, sep="/")
        mask = masks.trainable(tree, freeze)
        inside, _ = masks.split(tree, mask)
        self.tx = adamw(
            lr=lr,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            schedule=lambda step: schedules.constant(step, total=100, warmup=0),
            decay_mask=masks.decay_mask(inside),
            multiplier=masks.layerwise(inside, self.config.train.layer_decay),
        )

        def make(params):
            return new_state(*masks.split(params, mask), self.tx, ema=self.config.train.ema > 0)

        where = state.state_shardings(jax.eval_shape(make, tree), tree, on)
        self.state = jax.jit(make, out_shardings=where)(whole)

        def loss(params, frozen, batch, key):
            sums = TASK.loss(self.net.forward(masks.join(params, frozen), batch, key), batch)
            total, weight = sums["loss"]
            return sums | {"loss": (total * batch["poison"].mean(), weight)} if poisoned else sums

        t = self.config.train
        step = make_train_step(loss, self.tx, seed=0, accumulate=t.accumulate, clip=t.clip, ema=t.ema)
        self.loss = loss
        self.step = jax.jit(step, out_shardings=(where, sharding.replicated(on)))
        self.where = sharding.batch_sharding(on, self.config.sharding.activations)

    def run(self, batches):
        """Mean loss of each step."""
        losses = []
        for one in batches:
            self.state, sums = self.step(self.state, scoring.to_device(one, self.where))
            losses.append(float(sums["loss"][0]) / float(sums["loss"][1]))
        return losses
