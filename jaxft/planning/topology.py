"""Machines that need not be there: TPU slices by name, as libtpu's compiler knows them, or devices of this machine."""

import contextlib
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxft.registry import UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    "16x16x16",
)


@dataclass(frozen=True)
class Kind:
    """A generation of TPUs. `cores`: what its machine types count, a chip's TensorCores."""

    shapes: tuple[str, ...]  # of slices, the usual ones
    most: int  # chips of a slice
    cores: int
    types: tuple[str, ...]  # what machine types begin with


# Source: the pages of the versions at cloud.google.com/tpu/docs. No v4: jax sees a chip of it as one device, and libtpu
# describes its two halves.
KINDS = {
    "v5e": Kind(_FLAT, 256, 1, ("v5e", "v5litepod")),
    "v5p": Kind((*_CUBES, "16x16x24"), 6144, 2, ("v5p",)),
    "v6e": Kind(_FLAT, 256, 1, ("v6e",)),
    "tpu7x": Kind(_CUBES, 9216, 2, ("tpu7x",)),
}


def named(name: str) -> str:
    """The topology that `name` means: "v5e:2x4", or a machine type, "v5litepod-8". Raises UserError for another."""
    if found := re.fullmatch(r"([a-z0-9]+)-(\d+)", name):
        kind = next((kind for kind, what in KINDS.items() if found[1] in what.types), None)
        if kind is not None:
            chips = int(found[2]) / KINDS[kind].cores
            return next((f"{kind}:{s}" for s in KINDS[kind].shapes if chips_of(s) == chips), "") or _refuse(name)
    kind, _, shape = name.partition(":")
    if kind not in KINDS or not re.fullmatch(r"\d+(x\d+)+", shape):
        return _refuse(name)
    return name if shape in KINDS[kind].shapes or _custom(kind, shape) else _refuse(name)


def chips_of(shape: str) -> int:
    return math.prod(int(n) for n in shape.split("x"))


def _custom(kind: str, shape: str) -> bool:
    """Whether cubes of 4 x 4 x 4 make up the slice, which may then have any such shape, the shortest side first."""
    sides = [int(n) for n in shape.split("x")]
    cubes = len(sides) == 3 and sides == sorted(sides) and all(side and side % 4 == 0 for side in sides)
    return KINDS[kind].shapes[0] == _CUBES[0] and cubes and chips_of(shape) <= KINDS[kind].most


def _refuse(name: str) -> str:
    kind = re.split(r"[:-]", name)[0]
    kind = next((one for one, what in KINDS.items() if kind in (one, *what.types)), None)
    if kind is None:
        known = [f"{one}:{shape}" for one, what in KINDS.items() for shape in what.shapes]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise UserError(
            f"--topology={name!r} is not known; kinds: {', '.join(KINDS)}, such as {(near or ['v5e:2x4'])[0]}"
        )
    numbers = [int(n) for n in re.findall(r"\d+", re.split(r"[:-]", name, maxsplit=1)[-1])]
    wanted = math.prod(numbers) / (KINDS[kind].cores if "-" in name else 1)
    near = min(KINDS[kind].shapes, key=lambda shape: abs(math.log(max(chips_of(shape), 1) / max(wanted, 1))))
    raise UserError(
        f"--topology={name!r}: there is no such slice; of {kind} there are {', '.join(KINDS[kind].shapes)}; "
        f'did you mean "{kind}:{near}"?'
    )


def prepare() -> None:
    """What must be set before jax is imported: no TPU is opened, and no metadata server is asked for one."""
    os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1")


def devices(name: str, slices: int) -> Sequence[Any]:
    """The devices of `slices` slices of a topology that `named` has let pass. Raises UserError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology needs TPU's compiler: pip install 'jaxft[plan]' (Linux, x86-64)")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chips_of(name.partition(":")[2]) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]  # a machine has four otherwise
    with silent():
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


@contextlib.contextmanager
def silent() -> Iterator[list[str]]:
    """Inside, what libraries write to stderr is kept; afterwards it stands, line by line, in the list that is given."""
    import tempfile

    said: list[str] = []
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            said += kept.read().decode(errors="replace").splitlines()
