"""The devices that a step is planned for, and what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxft import chips, sharding
from jaxft.chips import Chip
from jaxft.planning import topology
from jaxft.registry import UserError


@dataclass(frozen=True)
class Machine:
    """`chip` None: nothing is known of a device but what the compiler says, and so no limit and no times."""

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    slices: int

    @property
    def limit(self) -> float | None:
        """Bytes that a device has for a program."""
        return self.chip.memory if self.chip else None

    @property
    def slice_of(self) -> list[int]:
        """Of each device in the order of a mesh, whose outermost axes the slices share out evenly."""
        return [place * self.slices // len(self.devices) for place in range(len(self.devices))]


def of_topology(name: str, slices: int) -> Machine:
    """Slices that need not be there; `name` as topology.named gives it."""
    devices = topology.devices(name, slices)
    return Machine(name if slices == 1 else f"{slices} x {name}", devices, chips.chip(devices[0]), slices)


def of_this(count: int) -> Machine:
    """Devices of this machine. Raises UserError where it has fewer."""
    import jax

    with topology.silent():  # libtpu, where there is no TPU
        there = jax.devices()
    if len(there) < count:
        raise UserError(f"--devices={count}: this machine has {len(there)} x {there[0].device_kind}")
    return Machine(
        f"{count} x {there[0].device_kind}", there[:count], chips.chip(there[0]), sharding.slices(there[:count])
    )
