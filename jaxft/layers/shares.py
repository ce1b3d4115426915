"""Sums over tokens that stay apart on the devices that made them, until they are added up once.

XLA adds up what devices have of a sum where it is made: within a loop at every turn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxft import sharding


def count(tokens: Sequence[int]) -> tuple[int, tuple[str, ...]]:
    """Into how many pieces tokens of the shape [B, L] are cut inside `activations`, and the axes that part them."""
    active = sharding.active()
    if active is None:
        return 1, ()
    axes = tuple(
        axis for part in sharding.spec(tokens, "BL", active.rules, active.mesh) for axis in sharding.names(part)
    )
    return sharding.devices(axes, active.mesh), axes


def apart(body: Callable[..., Any], *arrays: Any) -> Any:
    """`body` of each device's own tokens by itself: its results get a leading axis, of the shares [P, ...].

    All arrays, trees of them or None, are [B, L, ...].
    """
    active, (n, axes) = sharding.active(), count(jax.tree.leaves(arrays)[0].shape[:2])
    if active is None or n == 1:
        return jax.tree.map(lambda x: x[None], body(*arrays))

    def cut(x: jax.Array) -> jax.Array:
        rows, columns = sharding.shards(x.shape[:2], "BL")
        x = x.reshape(rows, x.shape[0] // rows, columns, x.shape[1] // columns, *x.shape[2:]).swapaxes(1, 2)
        return constrain(x.reshape(n, *x.shape[2:]), "_" * (x.ndim - 2), axes)

    arrays = jax.tree.map(cut, arrays)
    with sharding.activations(active.mesh, {**active.rules, "B": None, "L": None}):
        return jax.vmap(body, spmd_axis_name=axes)(*arrays)


def joined(x: jax.Array, tokens: Sequence[int]) -> jax.Array:
    """The tokens [B, L, ...] of which `apart` had [P, B / rows, L / columns, ...]."""
    rows, columns = sharding.shards(tokens, "BL")
    x = x.reshape(rows, columns, *x.shape[1:]).swapaxes(1, 2)
    return x.reshape(*tokens, *x.shape[4:])


def constrain(x: jax.Array, letters: str, axes: tuple[str, ...]) -> jax.Array:
    """`x` [P, ...] with the shares of `apart` where they belong; `letters` are those of its other dimensions."""
    active = sharding.active()
    if active is None or not axes:
        return x
    with sharding.activations(active.mesh, {**active.rules, "B": axes, "L": None}):
        return sharding.constrain(x, "B" + letters)
