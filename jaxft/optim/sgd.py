"""Stochastic gradient descent."""

from collections.abc import Sequence
from typing import Any

import optax

from jaxft.optim.decoupled import Schedule, check_betas, decoupled


def sgd(
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    no_decay: Sequence[str] = (),
    schedule: Schedule,
    decay_mask: Any,
    multiplier: Any,
) -> optax.GradientTransformationExtraArgs:
    """SGD with heavy-ball or Nesterov momentum: velocity = momentum * velocity + gradient, as in torch.optim.SGD.

    Unlike torch's, the decay stays out of the velocity. The other arguments: see decoupled.py.
    """
    check_betas(momentum=momentum)
    return decoupled(
        optax.trace(momentum, nesterov),
        lr=lr,
        weight_decay=weight_decay,
        no_decay=no_decay,
        schedule=schedule,
        decay_mask=decay_mask,
        multiplier=multiplier,
    )
