"""FLOPs of the matrix products of a step, counted in the program as jax traces it: what is computed again counts again.

Over all devices together, before a compiler divides them. Loops over the layers count with all their turns, which XLA's
own analysis does not do. Of a kernel's products (Pallas) those of its grid, without blocks that causality skips; of
experts' products as many rows as they have on average.
"""

import math
from typing import Any

import jax
from jax.extend import core


def flops(step: Any, *arguments: Any, platform: str, experts: int = 1, causal: bool = False) -> tuple[float, bool]:
    """(FLOPs, whether all are known): a loop that goes on until something is so counts once.

    `experts`: into how many pieces the experts are cut, of which each device is given all rows, and has its share.
    `causal`: kernels of attention (splash) skip blocks whose keys all come later.
    """
    counter = _Counter(platform, experts, causal)
    return counter.of(jax.make_jaxpr(step)(*arguments).jaxpr), counter.known


class _Counter:
    def __init__(self, platform: str, experts: int, causal: bool) -> None:
        self.known, self._platform, self._experts, self._causal = True, platform, experts, causal

    def of(self, jaxpr: Any) -> float:
        return sum(self._equation(equation) for equation in jaxpr.eqns)

    def _equation(self, equation: Any) -> float:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            return _dot(equation)
        if name == "conv_general_dilated":
            return _convolution(equation)
        if name == "ragged_dot_general":
            return _ragged(equation) / self._experts
        inner = [_open(value) for value in given.values() for value in _several(value) if _is_jaxpr(value)]
        if not inner:
            return 0.0
        if name == "scan":
            return given["length"] * sum(map(self.of, inner))
        if name == "while":
            self.known = False
            return sum(map(self.of, inner))
        if name == "cond":
            platforms = given.get("branches_platforms") or ()
            chosen = [body for body, names in zip(inner, platforms, strict=False) if names and self._platform in names]
            chosen = chosen or [body for body, names in zip(inner, platforms, strict=False) if names is None]
            return max(map(self.of, chosen or inner))
        if name == "shard_map":  # its program is that of one device
            return given["mesh"].size * sum(map(self.of, inner))
        if name == "pallas_call":
            grid = given["grid_mapping"].grid
            blocks = grid[-1]
            share = (blocks + 1) / (2 * blocks) if self._causal and "splash" in str(given.get("name", "")) else 1
            return share * math.prod(grid) * max(map(self.of, inner))
        if name.startswith("custom_") and "call" in name:
            return self.of(inner[0])  # the function itself; its derivative is a rule
        return sum(map(self.of, inner))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _open(value: Any) -> Any:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value


def _several(value: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else (value,)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _ragged(equation: Any) -> float:
    """Rows of groups, each with a kernel of its group, or products of two such: no dimension of groups counts."""
    rows, inputs = equation.invars[0].aval.shape
    return 2.0 * rows * inputs * equation.invars[1].aval.shape[-1]


def _convolution(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    outputs = kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
