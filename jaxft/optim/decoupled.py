"""The last act that all optimizers share: learning rate, decoupled weight decay, multipliers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxft.optim.masks import exempt
from jaxft.registry import UserError

Schedule = Callable[[jax.Array], jax.Array]  # global step -> factor of the peak learning rate, in [0, 1]


def decoupled(
    direction: optax.GradientTransformation,
    *,
    lr: float,
    weight_decay: float,
    no_decay: Sequence[str],
    schedule: Schedule,
    decay_mask: Any,
    multiplier: Any,
) -> optax.GradientTransformationExtraArgs:
    """update = -lr * schedule(step) * multiplier * (direction + weight_decay * parameter, where decayed).

    Decay is decoupled from the gradient's statistics and scaled by the learning rate (Loshchilov & Hutter 2019, as in
    torch.optim.AdamW). `step` is the global step, so that an update that is left out never shifts the schedule, while
    the state of `direction` counts the updates that were applied. `decay_mask` (bools) and `multiplier` (floats, or
    arrays that broadcast) are trees like the parameters; `no_decay` exempts further paths (regexes).
    Raises UserError for a rate out of range and for a pattern that matches nothing.
    """
    if not 0 < lr < math.inf:
        raise UserError(f"optim.lr={lr} must be above 0 and finite; BERT-like models fine-tune at 1e-5 to 5e-5")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"optim.weight_decay={weight_decay} must be 0 or more and finite")
    decayed = exempt(decay_mask, no_decay, field="optim.no_decay")

    def update(updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra: Any) -> tuple[Any, Any]:
        towards, state = direction.update(updates, state, params)
        rate = -lr * schedule(step)

        def scaled(d: jax.Array, p: jax.Array, decay: bool, times: Any) -> jax.Array:
            return (rate * times * (d + weight_decay * p if decay else d)).astype(p.dtype)

        return jax.tree.map(scaled, towards, params, decayed, multiplier), state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def check_betas(**betas: float) -> None:
    """Raises UserError for a decay rate of moments outside [0, 1)."""
    for name, value in betas.items():
        if not 0 <= value < 1:
            raise UserError(f"optim.{name}={value} must be at least 0 and below 1")
