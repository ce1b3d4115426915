"""AdamW."""

from collections.abc import Sequence
from typing import Any

import optax

from jaxft.optim.decoupled import Schedule, check_betas, decoupled
from jaxft.optim.moments import kept
from jaxft.registry import UserError


def adamw(
    *,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    moments: str = "float32",
    no_decay: Sequence[str] = (),
    schedule: Schedule,
    decay_mask: Any,
    multiplier: Any,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), equal to torch.optim.AdamW; `lr` is the peak.

    Two moments a parameter, kept between steps as "float32" (8 bytes), "bfloat16" (4) or "8bit" (2.03): moments.py.
    `eps` is added outside the root. The other arguments: see decoupled.py.
    """
    check_betas(b1=b1, b2=b2)
    if not eps > 0:
        raise UserError(f"optim.eps={eps} must be above 0, or a parameter without a gradient becomes NaN")
    return decoupled(
        kept(optax.scale_by_adam(b1, b2, eps), moments),
        lr=lr,
        weight_decay=weight_decay,
        no_decay=no_decay,
        schedule=schedule,
        decay_mask=decay_mask,
        multiplier=multiplier,
    )
