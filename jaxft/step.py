"""One training step, as a pure function of (state, batch)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any  # nested dict of arrays
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight): what adds up over rows, micro-batches and hosts

# (trainable, frozen, batch, key) -> sums, with "loss" among them
LossFn = Callable[[Params, Params, Batch, jax.Array | None], Sums]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step; with the config it determines everything that follows."""

    step: jax.Array  # int32: steps made. Data order (Run.batches), dropout keys and schedules derive from it
    params: Params  # what trains
    frozen: Params  # what does not: no gradient, no optimizer state
    opt: Any
    ema: Params | None  # moving average of `params`
    skipped: jax.Array  # int32: updates left out because loss or gradient was not finite
    bad_streak: jax.Array  # int32: how many of the latest steps in a row were left out


def new_state(params: Params, frozen: Params, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    average = jax.tree.map(jnp.copy, params) if ema else None
    step, skipped, bad_streak = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, frozen, tx.init(params), average, skipped, bad_streak)


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformationExtraArgs, *, seed: int, accumulate: int, clip: float, ema: float
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """The step: gradient of the summed loss over `accumulate` micro-batches, divided once by the summed weight.

    An update whose loss or gradient norm is not finite is left out: parameters, optimizer state and average keep their
    values, `skipped` and `bad_streak` count it, `step` moves on. Clipping is by global norm (Pascanu et al. 2013).
    """
    gradients = _gradients(loss_fn) if accumulate == 1 else _accumulated(_gradients(loss_fn), accumulate)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, sums = gradients(state, batch, key)
        loss_sum, weight = sums["loss"]
        divisor = jnp.maximum(weight, 1e-8)  # a batch of ignored labels has weight 0 and gradient 0
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads)) / divisor
        scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)) / divisor if clip else 1.0 / divisor
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        state = _updated(state, grads, tx, ema, finite=jnp.isfinite(loss_sum) & jnp.isfinite(norm))
        one = jnp.ones((), jnp.float32)
        counts = {"bad_streak": state.bad_streak, "skipped": state.skipped}
        extra = {"grad_norm": (norm, one), **{name: (count.astype(jnp.float32), one) for name, count in counts.items()}}
        return state, sums | extra

    return train_step


Gradients = Callable[[TrainState, Batch, jax.Array], tuple[Params, Sums]]


def _gradients(loss_fn: LossFn) -> Gradients:
    """Gradients of the summed loss, and all sums, of one batch."""

    def gradients(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Params, Sums]:
        def summed_loss(params: Params) -> tuple[jax.Array, Sums]:
            sums = loss_fn(params, state.frozen, batch, key)
            return sums["loss"][0], sums

        return jax.grad(summed_loss, has_aux=True)(state.params)

    return gradients


def _accumulated(gradients: Gradients, pieces: int) -> Gradients:
    """The same over `pieces` micro-batches one after the other: sums add up."""

    def accumulated(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Params, Sums]:
        # Row r goes to micro-batch r % pieces, so that every device keeps a share of each micro-batch.
        micro = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, pieces)
        shapes = jax.eval_shape(gradients, state, jax.tree.map(lambda x: x[0], micro), key)
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(state, *part)), None

        return jax.lax.scan(add, start, (micro, keys))[0]

    return accumulated


def _updated(
    state: TrainState, grads: Params, tx: optax.GradientTransformationExtraArgs, ema: float, finite: jax.Array
) -> TrainState:
    """The next state; where `finite` is False only the counters move."""
    before = on_device(state.opt)
    updates, opt = tx.update(grads, before, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    average = None
    if state.ema is not None:
        average = jax.tree.map(lambda a, p: a * ema + p.astype(a.dtype) * (1 - ema), state.ema, params)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        frozen=state.frozen,
        opt=keep(opt, before),
        ema=keep(average, state.ema),
        skipped=state.skipped + (~finite).astype(jnp.int32),
        bad_streak=jnp.where(finite, 0, state.bad_streak + 1),
    )


def on_device(tree: Any) -> Any:
    """The tree where it can be computed with: what the host keeps (train.offload) is fetched."""
    return jax.device_put(tree, jax.memory.Space.Device)


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Whether every number of a tree is finite: an update from finite gradients can still overflow."""
    return jnp.all(jnp.stack([jnp.isfinite(on_device(leaf)).all() for leaf in jax.tree.leaves(params)]))
