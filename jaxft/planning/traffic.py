"""What a compiled step moves: each collective with its bytes, bytes of the device's memory, what waits for backward."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.planning.hlo import Array, Computation, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
HERE = 0  # the memory space of the device itself
# What takes no time of its own: names for what is there, control, and the ends of what was begun.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("copy-done", "slice-done", "async-start", "async-update", "async-done", "opt-barrier", "partition-id", "iota"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done", "domain", "send-done", "recv-done"),
    "add-dependency",
}
_PARTS = ("dynamic-slice", "slice", "gather")  # read a part of their first operand
_ALIASES = ("bitcast", "copy", "reshape", "transpose", "convert")


@dataclass(frozen=True)
class Collective:
    kind: str
    bytes: float  # that each device gives
    groups: tuple[tuple[int, ...], ...]  # of devices, by their place in the mesh
    times: int  # a step
    source: str
    shape: tuple[int, ...]  # of the largest array that a device gives

    @property
    def size(self) -> int:
        """Devices of a group."""
        return max((len(group) for group in self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, by the ring algorithms."""
        n = self.size
        if self.kind == "all-gather":
            return self.bytes * (n - 1)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives(module: Module, devices: int, slices: int = 1) -> list[Collective]:
    """Those of a step. One that a compiler spreads over several fusions is one: channel, kind and shape tell."""
    found = []
    for name, times in module.runs.items():
        seen: dict[str, Collective] = {}
        for number, (one, computation, fusion) in enumerate(_with_fused(module, module.computations[name])):
            kind = _kind(one, fusion)
            if not kind:
                continue
            arrays = _given(one, computation)
            largest = max(arrays, key=lambda array: array.bytes)
            groups = _groups(one, devices, slices)
            told = Collective(kind, sum(array.bytes for array in arrays), groups, times, one.source, largest.dims)
            # What stands by itself is one each: within shard_map all have the same channel.
            key = f"{one.attribute('channel_id')} {kind} {largest.dims}" if fusion else f"#{number}"
            if told.size > 1 and (key not in seen or seen[key].bytes < told.bytes):
                seen[key] = told
        found += seen.values()
    return found


def _kind(one: Instruction, fusion: str) -> str:
    """What kind of collective an instruction is, "" for none. `fusion`: the program of the fusion that it is in."""
    if one.op == "send":  # to other slices, through the host
        told = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.text)
        kind = told[1].lower().replace("_", "-") if told else ""
        return kind if kind in KINDS or not kind else "collective-permute"
    kind = one.op.removesuffix("-start")
    if kind == "all-reduce" and fusion.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind if kind in KINDS else ""


def _with_fused(module: Module, computation: Computation) -> Iterator[tuple[Instruction, Computation, str]]:
    """The instructions of a computation and of its fusions, each with where it stands, and in which fusion."""
    for one in computation.values():
        yield one, computation, ""
        if one.op == "fusion":
            inside = module.inside(one)
            for inner in inside.values():
                yield inner, inside, one.called["calls"][0]


def _given(one: Instruction, computation: Computation) -> list[Array]:
    return [array for name in one.operands if name in computation for array in computation[name].results]


def _groups(one: Instruction, devices: int, slices: int) -> tuple[tuple[int, ...], ...]:
    """replica_groups in any of its spellings: {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,...] {'a'}."""
    if one.op == "send":  # the devices of the same place in each slice
        return tuple(tuple(range(place, devices, devices // slices)) for place in range(devices // slices))
    if one.op.startswith("collective-permute"):
        return _permuted(one)
    text = one.attribute("replica_groups")
    whole = tuple(range(devices))
    if listed := re.findall(r"\{([\d,]+)\}", text):
        return tuple(tuple(int(n) for n in group.split(",")) for group in listed)
    if named := re.match(r"mesh\[(.*?)\](?:, device_ids=\(?(.*?)\)?)? \{(.*?)\}$", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _iota(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
        grid = ids.reshape(tuple(sizes.values()))
        axes = re.findall(r"'(\w+)'", named[3])
        inner = [list(sizes).index(axis) for axis in axes]
        grid = np.moveaxis(grid, inner, range(-len(inner), 0))
        size = math.prod(sizes[axis] for axis in axes)
        return tuple(map(tuple, grid.reshape(-1, size).tolist()))
    if tiled := re.match(r"\[([\d,]+)\]<=(.*)$", text):
        shape = [int(n) for n in tiled[1].split(",")]
        return tuple(map(tuple, _iota(tiled[2]).reshape(-1, shape[-1]).tolist()))
    return (whole,)


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0): 0, 1, ... in that shape, transposed."""
    shape, _, order = text.replace("<=", "").partition("T")
    dims = [int(n) for n in re.findall(r"\d+", shape)]
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose([int(n) for n in re.findall(r"\d+", order)]) if order else ids).reshape(-1)


def _permuted(one: Instruction) -> tuple[tuple[int, ...], ...]:
    pairs = re.findall(r"\{(\d+),(\d+)\}", one.attribute("source_target_pairs"))
    return tuple((int(source), int(target)) for source, target in pairs if source != target)


def memory_bytes(module: Module) -> float:
    """Bytes that a step reads and writes in the device's memory, each array as often as it is an operand or a result.

    Of an array that is only cut (a layer's parameters from those of all) the piece counts, and nothing of what a
    compiler holds in faster memory.
    """
    return sum(
        times * sum(_moved(module, one, module.computations[name]) for one in module.computations[name].values())
        for name, times in module.runs.items()
    )


def _moved(module: Module, one: Instruction, computation: Computation) -> float:
    if one.op in _FREE:
        return 0
    if one.op == "fusion":
        return _moved_by_fusion(module, one, [_result(computation, name) for name in one.operands])
    if one.op in (*_PARTS, "slice-start"):
        piece = one.results[1 if one.op == "slice-start" else 0]  # of ((operand), piece, context)
        return _here([piece]) + piece.bytes * any(a.space == HERE for a in _result(computation, one.operands[0]))
    if one.op == "dynamic-update-slice":
        return 2 * _here(_result(computation, one.operands[1]))
    if one.op.endswith("-start"):  # (source, target, context)
        return _here(one.results[:2])
    return _here(one.results) + sum(_here(_result(computation, name)) for name in one.operands)


def _moved_by_fusion(module: Module, one: Instruction, operands: Sequence[Sequence[Array]]) -> float:
    inside, total = module.inside(one), 0.0
    parameters = {int(inner.given): inner for inner in inside.values() if inner.op == "parameter"}
    for number, arrays in enumerate(operands):
        if number in parameters:
            total += min(_here(arrays), _read_of(module, parameters[number].name, inside, _here(arrays)))
    root = next(inner for inner in inside.values() if inner.root)
    parts = [inside[name] for name in root.operands] if root.op == "tuple" else [root]
    if len(parts) != len(one.results):  # one that gives several by itself
        return total + _here(one.results)
    for part, result in zip(parts, one.results, strict=True):
        if part.op == "dynamic-update-slice" and result.space == HERE:
            total += sum(array.bytes for array in _result(inside, part.operands[1]))
        else:
            total += _here([result])
    return total


def _read_of(module: Module, name: str, inside: Computation, whole: float) -> float:
    """How much of an operand a fusion reads: all, unless it only cuts pieces off, or writes into it."""
    total = 0.0
    for one in inside.values():
        if name not in one.operands:
            continue
        if one.op in _PARTS and one.operands[0] == name:
            total += sum(array.bytes for array in one.results)
        elif one.op == "dynamic-update-slice" and one.operands[0] == name:
            continue
        elif one.op in _ALIASES:
            total += _read_of(module, one.name, inside, whole)
        elif one.op == "fusion":
            within = module.inside(one)
            numbers = {str(number) for number, operand in enumerate(one.operands) if operand == name}
            taken = [inner.name for inner in within.values() if inner.op == "parameter" and inner.given in numbers]
            total += sum(_read_of(module, inner, within, whole) for inner in taken)
        else:
            return whole
    return total


def _result(computation: Computation, name: str) -> tuple[Array, ...]:
    return computation[name].results if name in computation else ()


def _here(arrays: Iterable[Array]) -> float:
    return sum(array.bytes for array in arrays if array.space == HERE)


def kept(module: Module) -> float:
    """Bytes of what the forward pass leaves for the backward pass: activations, as far as they are told apart.

    What jax calls jvp() makes it and what it calls transpose() takes it, both outside of loops.
    """
    computation = module.computations[module.entry]
    waiting: dict[str, tuple[Array, ...]] = {}
    for one in computation.values():
        if not _backward(one):
            continue
        for name in _roots(one, computation):
            made = computation[name]
            if "jvp(" in made.source and not _backward(made):
                waiting[name] = made.results
            elif made.op == "get-tuple-element" and made.operands[0] in computation:
                maker = computation[made.operands[0]]
                if maker.op == "while" and "jvp(" in maker.source and not _backward(maker):
                    waiting[name] = made.results
    return sum(_here(arrays) for arrays in waiting.values())


def _backward(one: Instruction) -> bool:
    return "transpose(jvp" in one.source


def _roots(one: Instruction, computation: Computation) -> set[str]:
    """What an instruction takes, behind the tuples, copies and views of it."""
    found, left = set[str](), list(one.operands)
    while left:
        name = left.pop()
        made = computation.get(name)
        if made is None or name in found:
            continue
        if made.op in ("tuple", "bitcast", "copy", "copy-done", "copy-start", "opt-barrier"):
            left += made.operands
        else:
            found.add(name)
    return found
