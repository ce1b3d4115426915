"""The matrix products of a compiled step by the dtype of their factors: is what was asked for what is computed?"""

import re

from jaxft.planning.hlo import Computation, Instruction, Module

OPS = ("dot", "convolution")  # a TPU's products are convolutions


def by_dtype(module: Module) -> dict[str, float]:
    """dtype of the wider factor -> share of all products, by their FLOPs. Those of kernels are not seen."""
    found: dict[str, float] = {}
    for name, times in module.runs.items():
        computation = module.computations[name]
        inside = [module.inside(one) for one in computation.values() if one.op == "fusion"]
        for where in (computation, *inside):
            for one in where.values():
                if one.op in OPS:
                    factors = [where[operand].results[0] for operand in one.operands[:2]]
                    widest = max(factors, key=lambda factor: factor.bytes / max(1, factor.size)).dtype
                    found[widest] = found.get(widest, 0.0) + times * _flops(one, where)
    total = sum(found.values())
    return {dtype: flops / total for dtype, flops in found.items()} if total else {}


def _flops(one: Instruction, where: Computation) -> float:
    left, right = (where[operand].results[0] for operand in one.operands[:2])
    if one.op == "dot":
        contracted = re.findall(r"\d+", one.attribute("lhs_contracting_dims"))
        depth = 1
        for axis in contracted:
            depth *= left.dims[int(axis)]
        return 2.0 * one.results[0].size * depth
    kernel = one.attribute("dim_labels").partition("_")[2].partition("->")[0]
    return 2.0 * one.results[0].size * right.size / right.dims[kernel.index("o")]
