"""The text of a compiled program (HLO), read: instructions with their shapes, and how often each computation runs.

XLA's own cost analysis counts the body of a loop once, and so a scan over the layers as one layer.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BITS = {4: "s4 u4 f4e2m1fn", 8: "pred s8 u8 f8e4m3fn f8e5m2 f8e4m3b11fnuz f8e8m0fnu f8e4m3 f8e3m4"}
_BITS |= {16: "s16 u16 f16 bf16", 32: "s32 u32 f32", 64: "s64 u64 f64 c64", 128: "c128"}
BYTES = {name: bits / 8 for bits, names in _BITS.items() for name in names.split()}

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_CALLED = re.compile(r"(calls|body|condition|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%[\w.$-]+)")


@dataclass(frozen=True)
class Array:
    dtype: str
    dims: tuple[int, ...]
    space: int  # where it lives: 0 is the device's memory, 1 a TPU's VMEM, 5 the host

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return BYTES.get(self.dtype, 0) * self.size


@dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str  # what stands behind the operands: attributes
    given: str  # what stands between its parentheses
    root: bool

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """Attribute -> the computations that it names."""
        return {kind: re.findall(r"%([\w.$-]+)", names) for kind, names in _CALLED.findall(self.text)}

    def attribute(self, name: str) -> str:
        """The value of an attribute up to the next one, "" without it."""
        found = re.search(rf"[ ,]{name}=(.*?)(?=, (?!device_ids)[a-z_]+=|$)", self.text)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """What it was in the program that was traced, such as "jit(step)/jvp()/while/body/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # in order of execution


@dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in a step, those of fusions not among them (traffic.py looks into them)."""
        runs: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            runs[name] = runs.get(name, 0) + times
            for one in self.computations[name].values():
                if one.op == "while":
                    visit(one.called["body"][0], times * self.trips(one))
                elif one.op in ("call", "conditional", "async-start"):
                    for called in (name for names in one.called.values() for name in names):
                        visit(called, times)

        visit(self.entry, 1)
        return runs

    def trips(self, loop: Instruction) -> int:
        """How often a loop turns; 1 where the program does not tell, as of one that goes on until something is so."""
        if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(told[1])
        condition = self.computations[loop.called["condition"][0]]
        constants = [
            int(one.given)
            for one in condition.values()
            if one.op == "constant" and one.results[0].dims == () and one.given.lstrip("-").isdigit()
        ]
        return constants[0] if len(constants) == 1 else 1

    def inside(self, fusion: Instruction) -> Computation:
        return self.computations[fusion.called["calls"][0]]


def read(text: str) -> Module:
    """The program that `compiled.as_text()` gives."""
    computations: dict[str, Computation] = {}
    entry, here = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line == "}":
            here = None
        elif here is not None and (found := _LINE.match(line)):
            one = _instruction(found[2], bool(found[1]), line[found.end() :])
            here[one.name] = one
    return Module(computations, entry)


def _instruction(name: str, root: bool, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    op = rest.partition("(")[0]
    close = _closing(rest, len(op))
    given = rest[len(op) + 1 : close]
    return Instruction(
        name, op, tuple(arrays(kind)), tuple(re.findall(r"%([\w.$-]+)", given)), rest[close + 1 :], given, root
    )


def arrays(text: str) -> Iterator[Array]:
    """The arrays of a type: one, or those of a tuple."""
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        yield Array(dtype, tuple(int(n) for n in dims.split(",") if n), int(space[1]) if space else 0)


def _closing(text: str, at: int) -> int:
    """Where the parenthesis closes that opens at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"no end: {text[:80]}")
