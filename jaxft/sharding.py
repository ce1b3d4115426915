"""Where arrays live: a mesh from the config, and two maps from dimension letters to mesh axes.

Models name letters only (`constrain(x_BLD, "BLD")`, `Dense(axes=("D", "F"))`); the maps say which mesh axis carries a
letter. Parameters and activations have a map each, which is all that separates data, fully sharded and tensor
parallelism (ZeRO-3: the parameter map shards D over `fsdp` while activations shard B over it).
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.registry import UserError, nearest

AXES = ("data", "fsdp", "tensor", "context", "expert")
ACROSS = ("data", "fsdp")  # the axes that slices may share out, in this order
# What they mean: jaxft/layers/__init__.py.
LETTERS = (
    *("B", "L", "M", "S", "D", "F", "V", "T", "H", "G", "K", "Q"),
    *("HK", "GK", "P", "C", "N", "R", "E", "X", "J", "Y", "W", "I"),
)
STACKED = ("N",)  # leading axes of stacked blocks; they do not count towards a parameter's rank

Rules = Mapping[str, str | Sequence[str] | None]


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `sizes` (axis -> devices; one -1 takes what is left) over `devices`, by default all of them.

    Raises UserError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    grid = _arranged(mesh_shape(sizes, len(devices)), devices)
    # Auto: XLA propagates shardings between our constraints. Explicit ones every third-party operation would have to
    # know about.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices as a grid whose inner axes follow the fast links, and the outer ones what joins slices.

    Slices (of TPUs; hosts of GPUs that no NVLink joins) share out `data`, and `fsdp` where that is not enough.
    """
    between, left = [1] * len(shape), slices(devices)
    for axis, name in enumerate(AXES):
        if name in ACROSS:
            between[axis] = math.gcd(shape[axis], left)
            left //= between[axis]
    if left > 1:
        sizes = ", ".join(f"{axis}={shape[AXES.index(axis)]}" for axis in ACROSS)
        raise UserError(
            f"mesh: {sizes}: the devices are in {slices(devices)} slices, joined by a slower network, over which only "
            f"{' and '.join(ACROSS)} are shared out; set mesh.data to a multiple of {slices(devices)}"
        )
    # A physical axis is split only where no whole one has the size that is asked for.
    if slices(devices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = [size // across for size, across in zip(shape, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def slices(devices: Sequence[Any]) -> int:
    """How many slices the devices are in (of TPUs, or what NVLink joins of GPUs), joined by a slower network."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Sizes in the order of AXES, -1 filled in. Raises UserError where they do not fit `devices`."""
    text = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh: {text}: every axis must be 1 or more, and at most one may be -1 (what is left)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    free = -1 in sizes.values()
    if devices % fixed or (not free and fixed != devices):
        needs = "must divide" if free else "must equal"
        raise UserError(
            f"mesh: {text}: the product {fixed} {needs} the number of devices, {devices}; "
            "set one axis to -1 to take what is left"
        )
    return tuple(devices // fixed if sizes[axis] == -1 else sizes[axis] for axis in AXES)


def check_rules(params: Rules, activations: Rules) -> None:
    """Raises UserError for a rule of a letter or an axis that there is not, and where none says who gets which rows."""
    if "B" not in activations:
        raise UserError(
            "sharding.activations has no rule for B, the rows of the batch; the usual one is B=('data', 'fsdp'), and "
            "with B=None every device gets all rows"
        )
    if both := sorted(set(names(activations["B"])) & set(names(activations.get("L")))):
        raise UserError(
            f"sharding.activations: B={activations['B']!r} and L={activations['L']!r} are both on mesh axis {both[0]}; "
            "an axis shares out rows or their tokens"
        )
    for which, rules in (("params", params), ("activations", activations)):
        for letter, axes in rules.items():
            if letter not in LETTERS:
                raise UserError(
                    f"sharding.{which}.{letter}={axes!r}: no dimension has the letter {letter!r}; letters: "
                    f"{', '.join(LETTERS)}{nearest(letter, LETTERS)}"
                )
            for axis in names(axes):
                if axis not in AXES:
                    raise UserError(
                        f"sharding.{which}.{letter}={axes!r}: no mesh axis {axis!r}; axes: {', '.join(AXES)}"
                    )


def axes_of(*maps: Rules) -> set[str]:
    """The mesh axes that some rule uses."""
    return {axis for rules in maps for axes in rules.values() for axis in names(axes)}


def spec(shape: Sequence[int], axes: Sequence[str], rules: Rules, mesh: Mesh) -> P:
    """The PartitionSpec of an array whose dimensions carry the letters `axes`.

    A letter is left unsharded where its size does not divide, or where an earlier letter took the mesh axis.
    """
    taken: set[str] = set()
    parts = []
    for size, letter in zip(shape, axes, strict=True):
        wanted = [a for a in names(rules.get(letter)) if a not in taken and mesh.shape[a] > 1]
        if not wanted or size % math.prod(mesh.shape[a] for a in wanted):
            parts.append(None)
        else:
            taken.update(wanted)
            parts.append(tuple(wanted) if len(wanted) > 1 else wanted[0])
    return P(*parts)


def parameter_sharding(shape: Sequence[int], axes: Sequence[str], rules: Rules, mesh: Mesh) -> NamedSharding:
    """Matrices by rule; vectors (biases, norm scales) stay replicated, since gathering them costs more than they do."""
    if sum(letter not in STACKED for letter in axes) < 2:
        return replicated(mesh)
    return NamedSharding(mesh, spec(shape, axes, rules, mesh))


def undivided(shape: Sequence[int], axes: Sequence[str], rules: Rules, mesh: Mesh) -> list[str]:
    """Letters that a rule wants to shard and whose size does not divide: to be said aloud."""
    return [
        f"{letter}={size} by {'*'.join(wanted)}={math.prod(mesh.shape[a] for a in wanted)}"
        for size, letter in zip(shape, axes, strict=True)
        if (wanted := [a for a in names(rules.get(letter)) if mesh.shape[a] > 1])
        and size % math.prod(mesh.shape[a] for a in wanted)
    ]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def devices(axes: str | Sequence[str] | None, mesh: Mesh) -> int:
    """How many devices there are along mesh axes."""
    return math.prod(mesh.shape[axis] for axis in names(axes))


def pieces(letter: str, rules: Rules, mesh: Mesh) -> int:
    """Into how many pieces a rule wants to cut the axes of `letter`."""
    return devices(rules.get(letter), mesh)


def batch_shards(mesh: Mesh, activations: Rules) -> int:
    """Into how many pieces the batch axis is cut."""
    return pieces("B", activations, mesh)


def batch_sharding(mesh: Mesh, activations: Rules) -> NamedSharding:
    """Rows over the axes of letter B, everything else whole."""
    return NamedSharding(mesh, P(tuple(names(activations["B"]))))


def batch_blocks(mesh: Mesh, activations: Rules) -> tuple[int, ...]:
    """Which of the `batch_shards` pieces of the batch axis the devices of this process hold, ascending.

    Processes that share rows, as they do where an axis of other letters goes across them, have the same pieces.
    Raises UserError for a mesh that gives some of the rows of a process to another one.
    """
    held: dict[int, set[int]] = {}
    pieces = batch_shards(mesh, activations)
    for device, (rows,) in batch_sharding(mesh, activations).devices_indices_map((pieces,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    sets = list(held.values())
    if any(one != other and (one & other or len(one) != len(other)) for one in sets for other in sets):
        shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        raise UserError(
            f"mesh: {shape}: processes of {mesh.size // len(held)} devices each would share some of their rows of the "
            f"batch, and not all; the product {mesh.size // pieces} of the axes that do not cut the batch must divide "
            "that number or be a multiple of it"
        )
    return tuple(sorted(held[jax.process_index()]))


def names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes of a rule, or of a part of a PartitionSpec."""
    if not axes:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclass(frozen=True)
class Active:
    """Where activations live while a model is traced."""

    mesh: Mesh
    rules: Rules


_active: contextvars.ContextVar[Active | None] = contextvars.ContextVar("sharding", default=None)


@contextlib.contextmanager
def activations(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """While tracing inside, `constrain` pins activations to `mesh` by `rules`."""
    token = _active.set(Active(mesh, rules))
    try:
        yield
    finally:
        _active.reset(token)


def active() -> Active | None:
    """What the innermost `activations` set; None outside."""
    return _active.get()


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """`x` with its dimensions pinned by letter, such as `constrain(x_BLD, "BLD")`; no effect outside `activations`."""
    active = _active.get()
    if active is None or active.mesh.size == 1:
        return x
    where = NamedSharding(active.mesh, spec(x.shape, letters, active.rules, active.mesh))
    return jax.lax.with_sharding_constraint(x, where)


def shards(shape: Sequence[int], letters: str) -> tuple[int, ...]:
    """Into how many pieces `constrain` cuts each dimension of an array of this shape."""
    active = _active.get()
    if active is None:
        return (1,) * len(shape)
    parts = spec(shape, letters, active.rules, active.mesh)
    return tuple(devices(axes, active.mesh) for axes in parts)


def by_device(body: Callable[..., jax.Array], *given: tuple[jax.Array, str], over: str) -> jax.Array:
    """`body` of arrays given with their letters, on every device of its pieces of them; the result is like the first.

    Devices whose pieces differ in the letters `over`, such as experts, work on the same rows and add up what comes of
    it. A dimension that must be whole has the letter "_". Outside `activations` it is `body` of whole arrays.
    """
    arrays = [array for array, _ in given]
    active = _active.get()
    if active is None or active.mesh.size == 1:
        return body(*arrays)
    mesh, rules = active.mesh, active.rules
    shared = {axis for letter in over for axis in names(rules.get(letter))}
    rules = {
        letter: axes if letter in over else [axis for axis in names(axes) if axis not in shared]
        for letter, axes in rules.items()
    }
    specs = [spec(array.shape, letters, rules, mesh) for array, letters in given]
    cut = [{axis for part in where for axis in names(part)} for where in specs]
    varying = set[str]().union(*cut)

    def one(*pieces: jax.Array) -> jax.Array:
        # All made to vary over the same axes: the gradient of that adds up, where devices had the same piece.
        alike = [
            jax.lax.pcast(piece, tuple(varying - own), to="varying") if varying - own else piece
            for piece, own in zip(pieces, cut, strict=True)
        ]
        return jax.lax.psum(body(*alike), tuple(varying & shared))

    return jax.shard_map(one, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0])(*arrays)
