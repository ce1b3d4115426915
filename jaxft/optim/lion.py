"""Lion."""

from collections.abc import Sequence
from typing import Any

import optax

from jaxft.optim.decoupled import Schedule, check_betas, decoupled
from jaxft.optim.moments import kept


def lion(
    *,
    lr: float,
    b1: float,
    b2: float,
    weight_decay: float,
    moments: str = "float32",
    no_decay: Sequence[str] = (),
    schedule: Schedule,
    decay_mask: Any,
    multiplier: Any,
) -> optax.GradientTransformationExtraArgs:
    """The sign of interpolated momentum (Chen et al. 2023): one moment a parameter, half of AdamW's memory.

    Every coordinate moves by the full rate, so `lr` wants 3 to 10 times less than AdamW's and `weight_decay` as much
    more. moments: as of AdamW. The other arguments: see decoupled.py.
    """
    check_betas(b1=b1, b2=b2)
    return decoupled(
        kept(optax.scale_by_lion(b1, b2), moments),
        lr=lr,
        weight_decay=weight_decay,
        no_decay=no_decay,
        schedule=schedule,
        decay_mask=decay_mask,
        multiplier=multiplier,
    )
