"""The state of a run before it has numbers: optimizer, what is frozen, where each leaf lives."""

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import sharding
from jaxft.config import Config
from jaxft.layers.loss import combined
from jaxft.network import Network
from jaxft.optim import OPTIMIZERS, SCHEDULES, masks
from jaxft.optim.moments import SMALLEST
from jaxft.peft.methods import is_added
from jaxft.registry import bind, call
from jaxft.step import TrainState, make_train_step, new_state

Schedule = Callable[[Any], Any]  # global step -> factor of the peak learning rate


@dataclass(frozen=True)
class Plan:
    """How a TrainState is made and updated."""

    tx: Any  # optax transformation whose update takes the global `step`
    abstract: TrainState  # shapes, dtypes, shardings
    new: Callable[[Any], TrainState]  # parameters -> state of step 0; for use inside jit

    def make(self, params: Any) -> TrainState:
        """The state of step 0 on its devices; `params` are given away."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(self.new, out_shardings=where, donate_argnums=0)(params)


def schedule(config: Config, *, total: int, warmup: int) -> Schedule:
    """The schedule of `config` over `total` steps, `warmup` of them rising. Raises UserError for one with a mistake."""
    section = {key: value for key, value in config.schedule.items() if key != "warmup"}
    bound = bind(SCHEDULES, section, "schedule", "step", total=total, warmup=warmup)
    bound(0)  # one that cannot be followed is refused here, not after the compile
    return bound


def plan(net: Network, config: Config, schedule: Schedule | None) -> Plan:
    """Optimizer and state of `config` for the parameters of `net`.

    Who only reads states gives None as `schedule`: it decides how steps are taken, not what a state holds.
    """
    tree = net.tree
    mask = _mask(net, tree, config.train.freeze)
    trained, _ = masks.split(tree, mask)
    rates = jax.tree.unflatten(jax.tree.structure(trained), [net.peft.rate(path) for path in masks.paths(trained)])
    tx = call(
        OPTIMIZERS,
        config.optim,
        "optim",
        schedule=schedule,
        decay_mask=masks.decay_mask(trained),
        multiplier=jax.tree.map(lambda a, b: a * b, masks.layerwise(trained, config.train.layer_decay), rates),
    )
    tx = net.peft.optimizer(tx)

    def new(params: Any) -> TrainState:
        return new_state(*masks.split(params, mask), tx, ema=config.train.ema > 0)

    shapes = jax.eval_shape(new, tree)
    where = state_shardings(shapes, tree, net.mesh)
    if config.train.offload:
        where = dataclasses.replace(where, opt=jax.tree.map(_on_host, where.opt, shapes.opt))
    abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
    return Plan(tx, abstract, new)


def _mask(net: Network, tree: Any, freeze: Any) -> Any:
    """True where a parameter trains: where neither the method of fine-tuning nor train.freeze keeps it."""
    trains = [net.trains(path) for path in masks.paths(tree)]
    return jax.tree.map(
        lambda a, b: a and b, masks.trainable(tree, freeze), jax.tree.unflatten(jax.tree.structure(tree), trains)
    )


def saved(net: Network, state: TrainState) -> TrainState:
    """What a checkpoint holds of a state: of a network that a method adds to, not what it adds to and never changes."""
    if not net.peft.frozen:
        return state
    flat = flatten_dict(state.frozen, sep="/")
    kept = {path: leaf for path, leaf in flat.items() if is_added(path) or path.split("/")[0] in net.companions}
    return dataclasses.replace(state, frozen=unflatten_dict(kept, sep="/"))


def whole(held: TrainState, params: Any) -> TrainState:
    """The inverse: the state with what it lacks from `params`, all parameters."""
    known = {path for tree in (held.params, held.frozen) for path in flatten_dict(tree, sep="/")}
    rest = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if path not in known}
    return dataclasses.replace(held, frozen=masks.join(held.frozen, unflatten_dict(rest, sep="/")))


def training_step(net: Network, task: Any, plan: Plan, config: Config) -> Any:
    """The jitted step (state, batch, given) -> (state, sums): sums are replicated, the old state is given away.

    `given`: the parameters of companions that only answer (companions.py); {} of ordinary tasks.
    """
    train = config.train

    def step(state: TrainState, batch: Any, given: Any) -> Any:
        shares = getattr(task, "shares", {})  # most losses have no parts
        weights = task.weights(batch) if shares else {}  # of all micro-batches together

        def loss(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
            with net.tracing():
                logits, losses = _forward(net, task, masks.join(params, frozen), given, batch, key)
                sums = task.loss(logits, batch)
                return with_losses(sums | ({"loss": combined(sums, shares, weights)} if shares else {}), losses)

        update = make_train_step(
            loss, plan.tx, seed=config.seed, accumulate=train.accumulate, clip=train.clip, ema=train.ema
        )
        return update(state, batch)

    where = jax.tree.map(lambda leaf: leaf.sharding, plan.abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.replicated(net.mesh)))


def evaluation_step(net: Network, task: Any) -> Any:
    """The jitted (parameters, batch) -> (sums, what the task's meter sees), without dropout, replicated."""

    def evaluate(params: Any, batch: Any) -> tuple[Any, Any]:
        with net.tracing():
            logits, _ = _forward(net, task, params, {}, batch, None)
            return task.loss(logits, batch), task.seen(logits, batch)

    return jax.jit(evaluate, out_shardings=sharding.replicated(net.mesh))


def _forward(net: Network, task: Any, params: Any, given: Any, batch: Any, key: Any) -> Any:
    """(logits, losses of the network's own); of several networks as the task asks them."""
    if net.companions:
        return task.forward(net, params, given, batch, key)
    return net.forward_with_losses(params, batch, key)


def with_losses(sums: Any, losses: Any) -> Any:
    """The sums of a task with a network's own losses added: each as often as the task's loss counts.

    They are those of a micro-batch: how evenly a router shares out tokens is no sum over them.
    """
    total, weight = sums["loss"]
    for own, count in losses.values():
        total += weight * own / jnp.maximum(count, 1)
    return sums | losses | {"loss": (total, weight)}


def frozen_size(net: Network, plan: Plan) -> int:
    """How many of the parameters of `net` do not train."""
    frozen = [path.removesuffix("/codes") for path in flatten_dict(plan.abstract.frozen, sep="/")]
    return sum(math.prod(net.stored[path]) for path in frozen if path in net.stored)


def all_parameters(state: TrainState) -> Any:
    """Those that train, without an average, and those that do not."""
    return masks.join(state.params, state.frozen)


def weights(state: TrainState) -> Any:
    """The parameters that are evaluated and exported: the moving average where there is one."""
    return masks.join(state.params if state.ema is None else state.ema, state.frozen)


def stored_weights(params: Any, stored: Collection[str]) -> dict[str, Any]:
    """Path in a checkpoint -> leaf of `params`, of the same parameters as `weights` has; `stored` are all its paths.

    Without an optimizer and what trains, which options decide that name parameters of others, too.
    """
    branches = ("ema", "frozen", "params")  # of what trains the average comes first
    return {
        next((name for branch in branches if (name := f"{branch}/{path}") in stored), f"params/{path}"): leaf
        for path, leaf in flatten_dict(params, sep="/").items()
    }


def state_shardings(state: TrainState, params: Any, mesh: jax.sharding.Mesh) -> TrainState:
    """A leaf with the path and shape of a parameter lives where the parameter does, every other one everywhere.

    But one that has a number for every few of the last dimension (optim/moments.py) is shared out as the parameter is,
    as far as it divides.
    """
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def where(path: Any, leaf: Any) -> Any:
        for start in range(len(path)):
            like = by_path.get(jax.tree_util.keystr(path[start:]))
            if like is not None and like.shape == leaf.shape:
                return like.sharding
            if like is not None and leaf.ndim and like.shape[:-1] == leaf.shape[:-1]:
                return _as_far(like, leaf, mesh)
        return sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(where, state)


def _on_host(where: Any, leaf: Any) -> Any:
    """What is worth it: a few numbers stay on the device."""
    return where.with_memory_kind("pinned_host") if leaf.size >= SMALLEST else where


def _as_far(like: Any, leaf: Any, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of `like` for a leaf whose last dimension is shorter: whole there if the axes do not divide it."""
    spec = [*like.sharding.spec, *[None] * (leaf.ndim - len(like.sharding.spec))]
    last = spec[-1] if isinstance(spec[-1], tuple) else (spec[-1],) if spec[-1] else ()
    if leaf.shape[-1] % math.prod(mesh.shape[axis] for axis in last):
        spec[-1] = None
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
