"""Adafactor."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxft.optim import masks
from jaxft.optim.decoupled import Schedule, check_betas, decoupled
from jaxft.registry import UserError

SMALLEST = 128  # sides of a matrix whose second moments are kept as those of its rows and of its columns


def adafactor(
    *,
    lr: float,
    decay: float,
    clip: float,
    relative: bool,
    momentum: float,
    weight_decay: float,
    no_decay: Sequence[str] = (),
    schedule: Schedule,
    decay_mask: Any,
    multiplier: Any,
) -> optax.GradientTransformationExtraArgs:
    """Second moments of a matrix by its rows and columns (Shazeer & Stern 2018): D + F numbers instead of D x F.

    decay: update t remembers 1 - t^-decay of the moments; 0.8 is the paper's. clip: an update's root mean square is at
    most this; 1.0 is the paper's. relative: updates are times the root mean square of the parameter (at least 1e-3), so
    that `lr` is a share of it: 1e-3 to 1e-2. momentum: 0 for none, which keeps one number a parameter more otherwise.
    Every layer has statistics of its own, also where layers are stacked. The other arguments: see decoupled.py.
    """
    check_betas(momentum=momentum)
    if not 0 < decay < 1:
        raise UserError(f"optim.decay={decay} must be above 0 and below 1; 0.8 is the paper's")
    if not clip > 0:
        raise UserError(f"optim.clip={clip} must be above 0; 1.0 is the paper's")
    acts = [
        optax.scale_by_factored_rms(decay_rate=decay, min_dim_size_to_factor=SMALLEST),
        optax.clip_by_block_rms(clip),
    ]
    acts += [optax.scale_by_param_block_rms()] if relative else []
    acts += [optax.ema(momentum, debias=False)] if momentum else []
    return decoupled(
        layer_by_layer(optax.chain(*acts)),
        lr=lr,
        weight_decay=weight_decay,
        no_decay=no_decay,
        schedule=schedule,
        decay_mask=decay_mask,
        multiplier=multiplier,
    )


def layer_by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` that sees layers which are stacked in one leaf [N, ...] as N leaves: what it sums over is of one layer.

    Its state is that of each depth: {"0": of what is not stacked, "N": of stacks of N layers, with N in front}.
    """

    def parts(tree: Any, params: Any) -> dict[str, Any]:
        return {str(n): masks.split(tree, _of_depth(params, n))[0] for n in _depths(params)}

    def over(n: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if n == "0" else jax.vmap(function)

    def init(params: Any) -> dict[str, Any]:
        return {n: over(n, tx.init)(part) for n, part in parts(params, params).items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        towards: Any = {}
        following = {}
        own = parts(params, params)
        for n, part in parts(updates, params).items():
            found, following[n] = over(n, tx.update)(part, state[n], own[n])
            towards = masks.join(towards, found)
        return towards, following

    return optax.GradientTransformation(init, update)


def _depths(params: Any) -> list[int]:
    leaves = zip(masks.paths(params), jax.tree.leaves(params), strict=True)
    return sorted({leaf.shape[0] if masks.stacked(path) else 0 for path, leaf in leaves})


def _of_depth(params: Any, n: int) -> Any:
    """True where layers are stacked to n; of 0, where they are not."""
    leaves, structure = jax.tree.flatten(params)
    named = zip(masks.paths(params), leaves, strict=True)
    return jax.tree.unflatten(structure, [(leaf.shape[0] if masks.stacked(path) else 0) == n for path, leaf in named])
