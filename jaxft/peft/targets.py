"""Which layers a method changes: by kind, or by a regex over their paths."""

import re
from collections.abc import Sequence
from typing import Any

from flax import nnx

from jaxft.layers.attention import Attention
from jaxft.layers.dense import Dense
from jaxft.peft.methods import compiled
from jaxft.registry import UserError, nearest


def layers(model: Any, head: bool = False) -> dict[str, Dense]:
    """Path -> affine layer, without those of the `head`: one that begins anew trains whole or not at all."""
    return {path: layer for path, layer in modules(model, Dense).items() if head or not path.startswith("head/")}


def modules(model: Any, kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Path -> module of one of these kinds, in the same order."""
    found = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    return {path: found[path] for path in sorted(found) if isinstance(found[path], kinds)}


def attention(model: Any) -> dict[str, Attention]:
    return modules(model, Attention)


def chosen(
    model: Any, target: str | Sequence[str], field: str = "peft.target", *, head: bool = False
) -> dict[str, Dense]:
    """The layers that `target` names: "attention", "all-linear", or those whose whole path a regex matches.

    `head`: also those of the head, which adapters that `peft` has written may have.

    Raises UserError for a pattern that matches none, with the known paths.
    """
    patterns = (target,) if isinstance(target, str) else target
    if not (isinstance(patterns, Sequence) and patterns and all(isinstance(one, str) for one in patterns)):
        raise UserError(f"{field}={target!r} must be 'attention', 'all-linear', a regex of paths, or a tuple of these")
    known = layers(model, head)
    inside = tuple(f"{path}/" for path in attention(model))
    wanted: set[str] = set()
    for pattern in patterns:
        if pattern == "all-linear":
            matched = set(known)
        elif pattern == "attention":
            matched = {path for path in known if path.startswith(inside)}
        else:
            matched = {path for path in known if re.fullmatch(compiled(pattern, field), path)}
        if not matched:
            raise UserError(
                f"{field}={pattern!r} matches no layer; write 'attention', 'all-linear', or a regex of a whole path: "
                f"{', '.join(known)}{nearest(pattern, known)}"
            )
        wanted |= matched
    return {path: known[path] for path in sorted(wanted)}
