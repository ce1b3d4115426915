"""Kernels that stay as they are: layers make no gradient of them. As they are stored, or in few bits.

In few bits they are codes in blocks of the input dimension, each block with its own scale.

    int8    codes -127 to 127, evenly spread: absmax rounding (Dettmers et al. 2022a)
    nf4     16 codes where a normal distribution has its quantiles, two in a byte (Dettmers et al. 2023, QLoRA, 3)

A block has BLOCK numbers of one output, or the most that divide the inputs. Its scale, the largest absolute value, is
float32. In a tree of parameters such a kernel is a branch {"codes", "scales"}, so that optimizers, shardings and
checkpoints meet arrays only; layers meet a Quantized, which stands for the kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64
KINDS = {"int8": jnp.int8, "nf4": jnp.uint8}  # what the codes are stored as; so the dtype tells the kind
# The quantiles of QLoRA's appendix E: of N(0, 1), 8 from below zero and 9 from above, which share the zero.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


@jax.tree_util.register_pytree_with_keys_class
class Frozen:
    """A kernel as it is stored, which an optimizer never asks about."""

    def __init__(self, array: Any):
        self.array = array

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return ((jax.tree_util.DictKey("array"), self.array),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Self:
        return cls(*children)

    def __getitem__(self, everything: Any) -> Self:
        """`kernel[...]`, as of an array."""
        assert everything is ..., "a kernel that stays is read whole"
        return self

    def astype(self, dtype: Any) -> jax.Array:
        """The kernel, [..., in, out] in `dtype`."""
        return self.array.astype(dtype)


@jax.tree_util.register_pytree_with_keys_class
class Quantized(Frozen):
    """codes [..., blocks, rows of a block (nf4: half as many), out] and scales [..., blocks, 1, out]."""

    def __init__(self, codes: Any, scales: Any):
        self.codes, self.scales = codes, scales

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return ((jax.tree_util.DictKey("codes"), self.codes), (jax.tree_util.DictKey("scales"), self.scales)), None

    def astype(self, dtype: Any) -> jax.Array:
        """The kernel that this stands for; computed in float32."""
        if self.codes.dtype == jnp.uint8:
            low, high = self.codes & 15, self.codes >> 4
            values = jnp.concatenate([_nf4(low), _nf4(high)], axis=-2)
        else:
            values = self.codes.astype(jnp.float32) / 127
        blocks = values * self.scales
        *lead, count, rows, out = blocks.shape
        return blocks.reshape(*lead, count * rows, out).astype(dtype)


def _nf4(code: jax.Array) -> jax.Array:
    """The values of codes 0 to 15, chosen bit by bit: a look-up would be a gather, which TPUs are slow at."""
    values = list(NF4)
    for bit in range(4):
        is_set = (code >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def block_of(inputs: int) -> int:
    """Numbers of a block: BLOCK, or the largest even number below it that divides `inputs`; 1: there is none."""
    return next((size for size in range(min(BLOCK, inputs), 1, -1) if inputs % size == 0 and size % 2 == 0), 1)


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a kernel [..., in, out] can be cut into blocks."""
    return block_of(shape[-2]) > 1


def shapes(shape: tuple[int, ...], kind: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the arrays that stand for a kernel [..., in, out]."""
    *lead, inputs, out = shape
    size = block_of(inputs)
    rows = size // 2 if kind == "nf4" else size
    return {
        "codes": jax.ShapeDtypeStruct((*lead, inputs // size, rows, out), KINDS[kind]),
        "scales": jax.ShapeDtypeStruct((*lead, inputs // size, 1, out), jnp.float32),
    }


def quantize(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """A kernel [..., in, out] as codes and scales, each number as the nearest that its block can say."""
    *lead, inputs, out = kernel.shape
    size = block_of(inputs)
    blocks = kernel.astype(jnp.float32).reshape(*lead, inputs // size, size, out)
    scales = jnp.abs(blocks).max(-2, keepdims=True)
    unit = blocks / jnp.where(scales > 0, scales, 1)
    if kind == "int8":
        return {"codes": jnp.round(unit * 127).astype(jnp.int8), "scales": scales}
    middles = (NF4[1:] + NF4[:-1]) / 2
    codes = sum((unit > middle).astype(jnp.uint8) for middle in middles)
    low, high = jnp.split(codes, 2, axis=-2)
    return {"codes": low | (high << 4), "scales": scales}


def seen(params: Any, stays: Callable[[str], bool] = lambda path: False, path: str = "") -> Any:
    """Parameters as layers take them: {"codes", "scales"} as Quantized, a kernel whose path `stays` as Frozen."""
    if not isinstance(params, Mapping):
        return Frozen(params) if path.endswith("/kernel") and stays(path) else params
    if params.keys() == {"codes", "scales"}:
        return Quantized(params["codes"], params["scales"])
    start = f"{path}/" if path else ""
    return {name: seen(branch, stays, start + name) for name, branch in params.items()}


def decoded(params: Any, dtype: Any) -> Any:
    """A tree of parameters with every quantized kernel as an array of `dtype`."""
    found = seen(params)
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if isinstance(leaf, Quantized) else leaf,
        found,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )
