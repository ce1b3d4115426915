"""Parameters addressed by path: "blocks/attn/q/kernel". Trees are nested dicts; leaves are anything with a shape."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.registry import UserError, nearest

Tree = Any  # nested dict
_REQUIRED: Any = object()

FIRST = "first/"  # the lowest block, of families where it is unlike the stacked ones
NO_DECAY_NAMES = ("bias", "scale", "into", "length")  # by name and never by rank: stacked norm scales are [N, D]


def paths(params: Tree) -> list[str]:
    """The path of every leaf, in the order of jax.tree.leaves."""
    return ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def match(params: Tree, rules: Sequence[tuple[str, Any]], *, default: Any = _REQUIRED, field: str = "rules") -> Tree:
    """A tree like `params` that holds, for each path, the value of the first rule whose regex matches all of it.

    Raises UserError for a regex that does not compile or matches no path, and, without a `default`, for paths that no
    rule matches. `field` names the config key in messages.
    """
    names = paths(params)
    compiled = [(_compile(pattern, names, field), value) for pattern, value in rules]
    values = [next((v for regex, v in compiled if regex.fullmatch(name)), default) for name in names]
    uncovered = [name for name, value in zip(names, values, strict=True) if value is _REQUIRED]
    if uncovered:
        raise UserError(f"{field}: no pattern matches: {', '.join(uncovered)}; add one, such as '.*' at the end")
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _compile(pattern: str, names: Sequence[str], field: str) -> re.Pattern[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
    if any(map(regex.fullmatch, names)):
        return regex
    hint = nearest(pattern, names)
    if any(name.startswith(pattern.rstrip("/") + "/") for name in names):
        hint = f"; a pattern matches whole paths: write {pattern.rstrip('/') + '/.*'!r}"
    groups = sorted({name.rpartition("/")[0] + "/.*" for name in names})
    shown = ", ".join(groups[:20]) + (", ..." if len(groups) > 20 else "")
    raise UserError(f"{field}: {pattern!r} matches no parameter{hint}; parameters: {shown}")


def split(params: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """(what `mask` marks True, the rest), as nested dicts without the other's leaves or emptied branches."""
    chosen: Tree = {}
    rest: Tree = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            inside, outside = split(value, mask[name])
        else:
            inside, outside = (value, {}) if mask[name] else ({}, value)
        # An emptied branch is {}; leaves are arrays, whose truth value must not be asked for.
        if not (isinstance(inside, Mapping) and not inside):
            chosen[name] = inside
        if not (isinstance(outside, Mapping) and not outside):
            rest[name] = outside
    return chosen, rest


def join(a: Tree, b: Tree) -> Tree:
    """The inverse of `split`. Raises ValueError for a leaf that both have. Keys are sorted, as jax sorts them."""
    joined = dict(a)
    for name, value in b.items():
        if name not in joined:
            joined[name] = value
        elif isinstance(value, Mapping) and isinstance(joined[name], Mapping):
            joined[name] = join(joined[name], value)
        else:
            raise ValueError(f"both trees have a leaf at {name!r}")
    return {name: joined[name] for name in sorted(joined)}


def trainable(params: Tree, freeze: Sequence[str], *, field: str = "train.freeze") -> Tree:
    """True where a parameter trains: where no regex of `freeze` matches. Raises UserError when nothing is left."""
    mask = match(params, [(pattern, False) for pattern in freeze], default=True, field=field)
    if not any(jax.tree.leaves(mask)):
        raise UserError(f"{field}={tuple(freeze)!r} freezes every parameter; leave at least the head out")
    return mask


def decay_mask(params: Tree) -> Tree:
    """True where weight decay applies: everywhere but biases and norm scales (Devlin et al. 2018, their code)."""
    names = [path.rpartition("/")[2] not in NO_DECAY_NAMES for path in paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), names)


def exempt(mask: Tree, patterns: Sequence[str], *, field: str) -> Tree:
    """`mask` with every path that a regex matches set to False. Raises UserError for one that matches nothing."""
    if isinstance(patterns, str):  # a str is a sequence of one-letter patterns, never what is meant
        patterns = (patterns,) if patterns else ()
    kept = match(mask, [(pattern, False) for pattern in patterns], default=True, field=field)
    return jax.tree.map(lambda a, b: a and b, mask, kept)


def layerwise(params: Tree, decay: float) -> Tree:
    """Learning-rate multipliers that shrink by `decay` a layer from the head down (Clark et al. 2020, ELECTRA).

    The head (and all else above the blocks) gets 1, block i of n decay^(n - i), embeddings decay^(n + 1). A `first`
    block, below those that are stacked, is block 0. Encoder and decoder each count their own blocks, since every block
    of the decoder reads what the encoder's last one gives; embeddings are below the higher of both. Stacked leaves get
    a float32 array [N, 1, ...], others a float. Raises UserError when there are no blocks.
    """
    if decay == 1:
        return jax.tree.map(lambda _: 1.0, params)
    if not 0 < decay < 1:
        raise UserError(f"train.layer_decay={decay} must be above 0 and at most 1 (1: off)")
    leaves, structure = jax.tree.flatten(params)
    depths = [leaf.shape[0] for path, leaf in zip(paths(params), leaves, strict=True) if stacked(path)]
    if not depths:
        raise UserError(f"train.layer_decay={decay}: this model has no trainable blocks; set it to 1 (off)")

    below = max(depths) + 1
    lowest = below + any(path.startswith(FIRST) for path in paths(params))

    def multiplier(path: str, leaf: Any) -> Any:
        if stacked(path):
            n = leaf.shape[0]
            return np.power(np.float32(decay), np.arange(n, 0, -1, dtype=np.float32)).reshape(
                n, *(1,) * (leaf.ndim - 1)
            )
        if path.startswith(FIRST):
            return float(decay**below)
        return float(decay**lowest) if "embed" in path.split("/") else 1.0

    return jax.tree.unflatten(structure, [multiplier(*item) for item in zip(paths(params), leaves, strict=True)])


def stacked(path: str) -> bool:
    return "blocks" in path.split("/")
