"""Learning-rate schedules: the factor of the peak rate at a step, in [0, 1].

Steps count from 0. During warm-up the factor is step / warmup, as in transformers and optax: step 0 has factor 0, step
`warmup` the peak. From `total` on the factor stays where it ended. `step` may be a Python or numpy integer or traced.
All raise UserError for a warm-up that does not end before `total`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.registry import UserError

Step = Any  # int, numpy integer or traced int32


def constant(step: Step, *, total: int, warmup: int) -> jax.Array:
    """1 after the warm-up."""
    return _warmed(step, total, warmup, jnp.float32(1))


def linear(step: Step, *, total: int, warmup: int, floor: float) -> jax.Array:
    """A straight line from 1 down to `floor` at `total`."""
    return _warmed(step, total, warmup, _fall(1 - _progress(step, warmup, total), floor))


def cosine(step: Step, *, total: int, warmup: int, floor: float) -> jax.Array:
    """Half a cosine from 1 down to `floor` at `total` (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    return _warmed(step, total, warmup, _fall(_half_cosine(_progress(step, warmup, total)), floor))


def inverse_sqrt(step: Step, *, total: int, warmup: int, timescale: int, floor: float) -> jax.Array:
    """sqrt(timescale / (timescale + steps since the warm-up)), and no less than `floor`.

    timescale 0 means the warm-up's length, which gives the schedule of Vaswani et al. 2017; T5 used 10,000.
    """
    timescale = timescale or warmup
    if timescale < 1:
        raise UserError("schedule.timescale=0 means as long as the warm-up, but schedule.warmup=0; set one of them")
    since = jnp.clip(_float(step), warmup, total) - warmup
    return _warmed(step, total, warmup, jnp.maximum(_check_floor(floor), jax.lax.rsqrt(1 + since / timescale)))


def wsd(step: Step, *, total: int, warmup: int, decay: float, shape: str, floor: float) -> jax.Array:
    """Warm-up, stable, decay: 1 until the last `decay` (a share of `total`), then down to `floor` at `total`.

    `shape` of the fall: "linear", "cosine", or "sqrt" (1 - sqrt(t), the best of Hägele et al. 2024).
    """
    falls = {"linear": lambda t: 1 - t, "cosine": _half_cosine, "sqrt": lambda t: 1 - jnp.sqrt(t)}
    if shape not in falls:
        raise UserError(f"schedule.shape={shape!r} must be one of: {', '.join(falls)}")
    if not 0 < decay <= 1:
        raise UserError(f"schedule.decay={decay} is the share of the run that falls: above 0 and at most 1")
    start = total - max(1, round(decay * total))
    if start < warmup:
        raise UserError(
            f"schedule.decay={decay} begins at step {start} of {total}, before warmup={warmup} ends; lower one"
        )
    return _warmed(step, total, warmup, _fall(falls[shape](_progress(step, start, total)), floor))


def _float(step: Step) -> jax.Array:
    return jnp.asarray(step, jnp.float32)


def _progress(step: Step, start: int, end: int) -> jax.Array:
    """0 up to `start`, 1 from `end` on."""
    return jnp.clip((_float(step) - start) / max(1, end - start), 0, 1)


def _half_cosine(progress: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.cos(math.pi * progress))


def _fall(height: jax.Array, floor: float) -> jax.Array:
    """`height` in [0, 1] onto [floor, 1]."""
    return _check_floor(floor) + (1 - floor) * height


def _check_floor(floor: float) -> float:
    if not 0 <= floor <= 1:
        raise UserError(f"schedule.floor={floor} is a share of the peak rate: at least 0 and at most 1")
    return floor


def _warmed(step: Step, total: int, warmup: int, after: jax.Array) -> jax.Array:
    if not 0 <= warmup < total:
        raise UserError(
            f"schedule.warmup={warmup} steps must be 0 or more and end before the run does: total={total} steps"
        )
    return jnp.where(_float(step) < warmup, _float(step) / max(1, warmup), after)
