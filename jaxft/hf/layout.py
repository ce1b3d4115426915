"""One row of a family's table: hub tensor name and axes on disk, against a parameter's path and axes here.

A row renames, transposes and stacks; it never computes. So it reads the same in both directions, and a round trip
is exact to the bit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

Table = Mapping[str, tuple[str, str]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Layout:
    """A permutation between the axes of a tensor on disk and those of the parameter (its stacked axes left out)."""

    disk: tuple[str, ...]
    param: tuple[str, ...]

    def to_param(self, array: Any) -> Any:
        """A view of the disk array with the parameter's axes."""
        return array.transpose([self.disk.index(letter) for letter in self.param])

    def to_disk(self, array: Any) -> Any:
        """A view of the parameter with the disk's axes."""
        return array.transpose([self.param.index(letter) for letter in self.disk])

    def disk_index(self, per_axis: Sequence[Item]) -> tuple[Item, ...]:
        """One item per parameter axis (a slice, a size) -> the same items in the order of the disk axes."""
        return tuple(per_axis[self.param.index(letter)] for letter in self.disk)


def parse(text: str) -> Layout:
    """`"F D -> D F"` as a Layout; `"D"` alone leaves the axes as they are.

    Raises ValueError unless both sides carry the same letters, each once: only then can the row be inverted.
    """
    sides = [tuple(side.split()) for side in text.split("->")]
    disk, param = sides[0], sides[-1]
    if len(sides) > 2 or len(set(disk)) != len(disk) or sorted(disk) != sorted(param):
        raise ValueError(f"layout {text!r}: both sides must carry the same letters, each of them once")
    return Layout(disk, param)


@dataclass(frozen=True)
class Row:
    """A hub name, with `{N}` or `{E}` where a number stands, and the layout of each of its tensors."""

    name: str
    layout: Layout

    @property
    def stacked(self) -> tuple[str, ...]:
        """Letters of the parameter's leading axes that disk keeps as separate tensors: (), ("N",), ("N", "E")."""
        return tuple(re.findall(r"\{(\w+)\}", self.name))

    def tensors(self, shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into the stacked axes, hub name) of every tensor of a parameter of `shape`."""
        for index in product(*(range(size) for size in shape[: len(self.stacked)])):
            yield index, self.name.format(**dict(zip(self.stacked, index, strict=True)))

    def disk_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of each of those tensors. Raises ValueError where the rank of `shape` does not fit the row."""
        own = shape[len(self.stacked) :]
        if len(own) != len(self.layout.param):
            raise ValueError(f"{self.name}: a parameter of shape {tuple(shape)} does not fit axes {self.layout.param}")
        return self.layout.disk_index(own)


def rows(table: Table) -> dict[str, Row]:
    """Parameter path -> Row."""
    return {path: Row(name, parse(layout)) for path, (name, layout) in table.items()}
