"""Which triplets AdaLoRA keeps, and when: an optimizer that sets the others to zero (Zhang et al. 2023, 3.2, 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft.registry import UserError

NAMES = ("a", "b", "e")  # below the slot of a layer: vectors of the inputs, of the outputs, singular values
Flat = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Schedule:
    """In steps; the first step of a run is step 1 here.

    All triplets stay up to `tinit`. Then steps that `delta_t` divides prune to a budget that falls as a cube (eq. 12),
    until `tfinal` steps are left: from there on every step prunes to the last budget, by importances that stay.
    """

    total: int
    tinit: int
    tfinal: int
    delta_t: int

    @property
    def end(self) -> int:
        return self.total - self.tfinal

    def budget(self, step: int, first: int, last: int) -> int:
        """How many triplets of `first` are left after a step that prunes."""
        if step <= self.tinit:
            return first
        if step >= self.end:
            return last
        rest = 1 - (step - self.tinit) / (self.end - self.tinit)
        return int((first - last) * rest**3 + last)

    def budgets(self, first: int, last: int) -> np.ndarray:
        """The same of all steps from 0, int32: not computed in float32, which would round some of them otherwise."""
        return np.array([self.budget(step, first, last) for step in range(self.end + 1)], np.int32)

    def prunes(self, step: jax.Array) -> jax.Array:
        return (step >= self.end) | ((step > self.tinit) & (step % self.delta_t == 0))

    def learns(self, step: jax.Array) -> jax.Array:
        """Whether a step adds to what is known of importances."""
        return step < self.end


class Pruned(NamedTuple):
    inner: Any  # the state of the optimizer
    # Nested as the parameters of the triplets are, float32:
    sensitivity: Any  # smoothed |w * dL/dw| (eq. 9)
    uncertainty: Any  # smoothed distance of it from that (eq. 10)


def pruned(
    tx: Any, schedule: Schedule | None, *, target_rank: int, beta1: float, beta2: float
) -> optax.GradientTransformationExtraArgs:
    """`tx`, whose step is followed by pruning. Without a `schedule` only its state can be made.

    Importance is of the numbers that the step has made, times its gradient: so it is in the code of the authors, and in
    peft. Between two steps that prune, a triplet that went may come back, and prove more important than others.
    """

    def init(params: Any) -> Pruned:
        chosen = triplets(params)
        start = unflatten_dict({path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in chosen.items()}, sep="/")
        return Pruned(tx.init(params), start, jax.tree.map(jnp.copy, start))

    def update(updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra: Any) -> tuple[Any, Any]:
        if schedule is None:
            raise ValueError("AdaLora.for_run has not been asked: it says how long the run is")
        now = step + 1
        moves, inner = tx.update(updates, state.inner, params, step=step, **extra)
        flat, old, gradient = _flat(moves), triplets(params), triplets(updates)
        new: dict[str, Any] = {path: optax.apply_updates(leaf, flat[path]) for path, leaf in old.items()}
        known, learns = _learned(new, gradient, state, beta1, beta2), schedule.learns(now)
        known = jax.tree.map(lambda n, o: jnp.where(learns, n, o), known, state[1:])
        scores = importances(*(_flat(tree) for tree in known))
        first = sum(score.size for score in scores.values())
        modules = sum(score.size // score.shape[-1] for score in scores.values())
        budgets = jnp.asarray(schedule.budgets(first, min(target_rank * modules, first)))
        kept = highest(scores, budgets[jnp.minimum(now, schedule.end)])
        for layer, keeps in kept.items():
            path = f"{layer}/e"
            # What is left is exactly zero: x + -x.
            flat[path] = jnp.where(schedule.prunes(now) & ~keeps, -old[path], flat[path])
        return unflatten_dict(flat, sep="/"), Pruned(inner, *known)

    return optax.GradientTransformationExtraArgs(init, update)


def _flat(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def triplets(params: Any) -> dict[str, jax.Array]:
    """The parameters of triplets by path. Raises UserError where a part of them does not train."""
    flat = _flat(params)
    chosen = {path: leaf for path, leaf in flat.items() if path.split("/")[-2:-1] == ["adapter"]}
    layers = {path.rpartition("/")[0] for path in chosen}
    if missing := [f"{layer}/{name}" for layer in sorted(layers) for name in NAMES if f"{layer}/{name}" not in chosen]:
        raise UserError(f"train.freeze keeps {', '.join(missing)}, without which AdaLoRA cannot rank; leave them out")
    if not chosen:
        raise UserError("train.freeze keeps all that AdaLoRA has added; leave it out")
    return chosen


def _learned(new: Flat, gradient: Flat, state: Pruned, beta1: float, beta2: float) -> tuple[Any, Any]:
    """Sensitivity and uncertainty after a step."""
    before = [_flat(tree) for tree in state[1:]]
    sensitivity, uncertainty = {}, {}
    for path, leaf in new.items():
        importance = jnp.abs(leaf.astype(jnp.float32) * gradient[path].astype(jnp.float32))
        sensitivity[path] = beta1 * before[0][path] + (1 - beta1) * importance
        distance = jnp.abs(importance - sensitivity[path])
        uncertainty[path] = beta2 * before[1][path] + (1 - beta2) * distance
    return unflatten_dict(sensitivity, sep="/"), unflatten_dict(uncertainty, sep="/")


def importances(sensitivity: Flat, uncertainty: Flat) -> dict[str, jax.Array]:
    """Layer -> score of each triplet [..., R]: of its value, and of both vectors on average (eq. 7 and 11)."""
    score = {path: sensitivity[path] * uncertainty[path] for path in sensitivity}
    layers = sorted({path.rpartition("/")[0] for path in score})
    return {
        layer: score[f"{layer}/e"] + (score[f"{layer}/a"].mean(-2) + score[f"{layer}/b"].mean(-1)) for layer in layers
    }


def highest(scores: Mapping[str, jax.Array], budget: jax.Array) -> dict[str, jax.Array]:
    """Layer -> bools [..., R]: True for the `budget` highest scores of all layers together, of equal ones the last."""
    flat = jnp.concatenate([score.ravel() for score in scores.values()])
    place = jnp.zeros(flat.size, jnp.int32).at[jnp.argsort(flat)].set(jnp.arange(flat.size, dtype=jnp.int32))
    kept, at, found = place >= flat.size - budget, 0, {}
    for layer, score in scores.items():
        found[layer] = kept[at : at + score.size].reshape(score.shape)
        at += score.size
    return found
