"""One row of a family's table: hub tensor name and axes on disk, against a parameter's path and axes here.

    "blocks/attn/q/kernel": ("layers.{N}.q_proj.weight", "HK D -> D HK")       one tensor a layer, transposed
    "blocks/attn/q/kernel": ("layers.{N}.qkv_proj.weight", "+HK D -> D HK")    the first part of a fused tensor,
    "blocks/attn/k/kernel": ("layers.{N}.qkv_proj.weight", "+GK D -> D GK")    and the one that follows it
    "head/bias":            ("decoder.bias = bias", "V")                       under both names, read from the first
                                                                               that is there

A row renames, transposes and stacks; it never computes. So it reads the same in both directions, and a round trip
is exact to the bit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np

Table = Mapping[str, tuple[str, str]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Layout:
    """A permutation between the axes of a tensor on disk and those of the parameter (its stacked axes left out)."""

    disk: tuple[str, ...]
    param: tuple[str, ...]
    joined: int | None = None  # the disk axis along which parts follow each other; None: the tensor is the parameter's

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
    """`"F D -> D F"` as a Layout; `"D"` alone leaves the axes as they are; "+" marks the axis of a joined tensor.

    Raises ValueError unless both sides carry the same letters, each once: only then can the row be inverted.
    """
    sides = [tuple(side.split()) for side in text.split("->")]
    marked = [axis for axis, letter in enumerate(sides[0]) if letter.startswith("+")]
    disk, param = (tuple(letter.removeprefix("+") for letter in side) for side in (sides[0], sides[-1]))
    if len(sides) > 2 or len(marked) > 1 or len(set(disk)) != len(disk) or sorted(disk) != sorted(param):
        raise ValueError(f"layout {text!r}: both sides must carry the same letters, each of them once")
    return Layout(disk, param, marked[0] if marked else None)


def copy(out: np.ndarray, view: np.ndarray) -> None:
    """`out[...] = view`, a band of a transposed view at a time: numpy alone takes five times as long."""
    if out.dtype == view.dtype and out.dtype.itemsize == 2:
        out, view = out.view(np.uint16), view.view(np.uint16)  # numpy copies types that it does not know one by one
    if view.ndim != 2 or abs(view.strides[0]) >= abs(view.strides[1]):
        out[...] = view
        return
    for start in range(0, view.shape[1], BAND):
        out[:, start : start + BAND] = view[:, start : start + BAND]


BAND = 16  # the fastest of 4 to 64, for numbers of two bytes as of four
_NUMBERS = re.compile(r"\{(\w+)(?:\+(\d+))?\}")


@dataclass(frozen=True)
class Row:
    """A hub name, with `{N}` or `{E}` where a number stands, and the layout of each of its tensors.

    `{N+1}`: the first of the stacked tensors is number 1, since number 0 is another parameter's. `also`: further names
    that the same tensor has on disk.
    """

    name: str
    layout: Layout
    also: tuple[str, ...] = ()

    @property
    def stacked(self) -> tuple[str, ...]:
        """Letters of the parameter's leading axes that disk keeps as separate tensors: (), ("N",), ("N", "E")."""
        return tuple(letter for letter, _ in _NUMBERS.findall(self.name))

    def tensors(self, shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into the stacked axes, hub name) of every tensor of a parameter of `shape`."""
        for index in product(*(range(size) for size in shape[: len(self.stacked)])):
            yield index, _numbered(self.name, index)

    def copies(self, shape: Sequence[int]) -> Iterator[tuple[str, str]]:
        """(further name, hub name) of those tensors."""
        for index, name in self.tensors(shape):
            yield from ((_numbered(other, index), name) for other in self.also)

    def disk_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of each of those tensors. Raises ValueError where the rank of `shape` does not fit the row."""
        own = shape[len(self.stacked) :]
        if len(own) != len(self.layout.param):
            raise ValueError(f"{self.name}: a parameter of shape {tuple(shape)} does not fit axes {self.layout.param}")
        return self.layout.disk_index(own)


def _numbered(name: str, index: Sequence[int]) -> str:
    at = iter(index)
    return _NUMBERS.sub(lambda found: str(next(at) + int(found[2] or 0)), name)


@dataclass(frozen=True)
class Part:
    """Where a parameter lies in its tensor on disk: from `start` along the joined axis of a tensor of `whole`."""

    start: int
    whole: tuple[int, ...]

    def of(self, row: Row, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Slices of the parameter, in disk order -> slices of the tensor."""
        axis = row.layout.joined
        if axis is None:
            return index
        moved = slice(index[axis].start + self.start, index[axis].stop + self.start)
        return (*index[:axis], moved, *index[axis + 1 :])


def parts(table: Mapping[str, Row], shapes: Mapping[str, Sequence[int]]) -> dict[str, Part]:
    """Path -> its place in its tensor; parts of one tensor follow each other in the order of the table.

    `shapes` are those of the parameters. Raises ValueError where two rows share a tensor without being parts of it.
    """
    groups: dict[str, list[str]] = {}
    for path, row in table.items():
        groups.setdefault(row.name, []).append(path)
    found = {}
    for name, paths in groups.items():
        axes = {table[path].layout.joined for path in paths}
        if len(paths) > 1 and (None in axes or len(axes) > 1):
            raise ValueError(f"{name} is the tensor of {', '.join(paths)}, which are not marked as parts of one axis")
        axis, end = axes.pop(), 0
        own = [table[path].disk_shape(shapes[path]) for path in paths]
        whole = own[0] if axis is None else (*own[0][:axis], sum(shape[axis] for shape in own), *own[0][axis + 1 :])
        for path, shape in zip(paths, own, strict=True):
            found[path] = Part(end, whole)
            end += 0 if axis is None else shape[axis]
    return found


def rows(table: Table) -> dict[str, Row]:
    """Parameter path -> Row."""
    named = {path: (text.split(" = "), parse(layout)) for path, (text, layout) in table.items()}
    return {path: Row(names[0], layout, tuple(names[1:])) for path, (names, layout) in named.items()}
