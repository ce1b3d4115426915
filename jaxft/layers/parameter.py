"""A parameter declared, not allocated: shape, axes and initialiser in one place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def parameter(shape: tuple[int, ...], axes: tuple[str, ...], init: Init) -> nnx.Param:
    """A float32 parameter of `shape`, one letter of `axes` per dimension (legend: jaxft.layers).

    Its value is a ShapeDtypeStruct: nothing is allocated until `build` does so, sharded. `init(key, shape)` makes it.
    """
    if len(shape) != len(axes):
        raise ValueError(f"parameter of shape {shape} has axes {axes}: one letter per dimension")
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, init=init)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape, jnp.float32)


class FanIn:
    """Initialiser: normal with standard deviation factor / sqrt(inputs), the inputs of a kernel being its rows."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.factor * shape[0] ** -0.5 * jax.random.normal(key, shape, jnp.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FanIn) and other.factor == self.factor

    def __hash__(self) -> int:
        return hash((FanIn, self.factor))


class Normal:
    """Initialiser: normal with standard deviation `std`. A class, so that equal initialisers compare equal."""

    def __init__(self, std: float):
        self.std = std

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return self.std * jax.random.normal(key, shape, jnp.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normal) and other.std == self.std

    def __hash__(self) -> int:
        return hash((Normal, self.std))
