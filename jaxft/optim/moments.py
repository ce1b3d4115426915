"""Moments of an optimizer in fewer bits between its steps.

Rounding is at random, up or down, with the odds that make the mean right: to the nearest, a moment that moves by
a thousandth a step would not move at all. "8bit" is the block-wise dynamic code of Dettmers et al. 2022
(arXiv:2110.02861): of every BLOCK numbers the largest is kept in float32, and of each its share of that in 8 bits: a
power of ten, and as many linear steps within it as are left.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.registry import UserError

FORMATS = ("float32", "bfloat16", "8bit")
SIGNED = {"mu": True, "nu": False}  # the moments of optax's states
BLOCK = 256  # numbers of the last dimension that share a scale
SMALLEST = 4096  # numbers of a parameter whose moments are worth coding
DECADES = 7


class Coded(NamedTuple):
    """Trees like the parameters. codes: int8 or uint8 in the shape of the parameter; scales: float32 [..., blocks].

    Of a parameter with fewer than SMALLEST numbers codes are the float32 numbers, and scales a 0.
    """

    codes: Any
    scales: Any


def kept(tx: optax.GradientTransformation, form: str) -> optax.GradientTransformation:
    """`tx`, whose moments stand in its state as `form` says. Raises UserError for an unknown one."""
    if form not in FORMATS:
        raise UserError(f"optim.moments={form!r} must be one of: {', '.join(FORMATS)}")
    if form == "float32":
        return tx

    def packed(state: Any) -> Any:
        names = [name for name in SIGNED if name in state._fields]
        keys = dict(
            zip(names, jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(names)), strict=True)
        )
        if form == "8bit":
            return state._replace(**{n: _coded(getattr(state, n), SIGNED[n], keys[n]) for n in names})
        return state._replace(**{n: _each(stochastic, getattr(state, n), keys[n]) for n in names})

    def unpacked(state: Any, params: Any) -> Any:
        names = [name for name in SIGNED if name in state._fields]
        if form == "8bit":
            return state._replace(**{name: _decoded(getattr(state, name)) for name in names})
        wide = {name: jax.tree.map(lambda m, p: m.astype(p.dtype), getattr(state, name), params) for name in names}
        return state._replace(**wide)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        towards, after = tx.update(updates, unpacked(state, params), params)
        return towards, packed(after)

    return optax.GradientTransformation(lambda params: packed(tx.init(params)), update)


def _each(function: Callable[[jax.Array, jax.Array], Any], tree: Any, key: jax.Array) -> Any:
    """function(leaf, key of its own) of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [function(x, k) for x, k in zip(leaves, keys, strict=True)])


def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, one of its two neighbours at random, so that the mean of many is `x`."""
    if x.dtype != jnp.float32:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (jax.random.bits(key, x.shape, jnp.uint32) >> 16)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _coded(tree: Any, signed: bool, key: jax.Array) -> Coded:
    pairs = _each(lambda x, k: encode(x, signed, k), tree, key)
    codes, scales = (jax.tree.map(lambda _, pair, i=i: pair[i], tree, pairs) for i in (0, 1))
    return Coded(codes, scales)


def _decoded(coded: Coded) -> Any:
    return jax.tree.map(decode, coded.codes, coded.scales)


def encode(x: jax.Array, signed: bool, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(codes, scales) of an array [..., D]; of one that is small (x, nothing). Without a key to the nearest code."""
    if x.size < SMALLEST or x.dtype != jnp.float32:
        return x, jnp.zeros((), jnp.float32)
    # Cells of a decade: 2^i of the i-th, from 10^(i - 7) to ten times that, or twice as many where there is no sign.
    first = 0 if signed else 1
    blocks_NB = _blocks(x)
    # The largest is the middle of the last cell, so that it stays what it is, however often it is coded.
    scale_N1 = jnp.abs(blocks_NB).max(-1, keepdims=True) / (1 - 0.45 / 2 ** (DECADES - 1 + first))
    share_NB = blocks_NB / jnp.where(scale_N1 > 0, scale_N1, 1)
    size_NB = jnp.abs(share_NB)
    decade_NB = jnp.clip(jnp.ceil(jnp.log10(jnp.maximum(size_NB, 1e-30))) + DECADES - 1, 0, DECADES - 1)
    cells_NB = 2.0 ** (decade_NB + first)
    # Cells are numbered on from one decade to the next; the middle of one has its number and a half.
    place_NB = cells_NB * (1 + (size_NB * 10.0 ** (DECADES - 1 - decade_NB) - 0.1) / 0.9)
    rest = 0.5 if key is None else jax.random.uniform(key, place_NB.shape)
    code_NB = jnp.clip(jnp.floor(place_NB - 0.5 + rest) - first, 0, 2 ** (DECADES + first) - 1 - first)
    code_NB = jnp.where(scale_N1 > 0, code_NB, 0)
    coded = (code_NB * jnp.sign(share_NB)).astype(jnp.int8) if signed else code_NB.astype(jnp.uint8)
    return _flat(coded, x.shape), scale_N1[..., 0]


def decode(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """What `encode` was given, each number within half a cell, which is 0.7 % of its decade's end (0.35 % unsigned)."""
    if codes.dtype not in (jnp.int8, jnp.uint8):
        return codes
    first = int(codes.dtype == jnp.uint8)
    code_NB = _blocks(codes.astype(jnp.float32))
    place_NB = jnp.abs(code_NB) + first
    decade_NB = jnp.floor(jnp.log2(jnp.maximum(place_NB, 1))) - first
    cells_NB = 2.0 ** (decade_NB + first)
    within_NB = 0.1 + 0.9 * (place_NB - cells_NB + 0.5) / cells_NB
    size_NB = jnp.where(code_NB == 0, 0, within_NB * 10.0 ** (decade_NB - DECADES + 1))
    return _flat(jnp.sign(code_NB) * size_NB * scales[..., None], codes.shape)


def _blocks(x: jax.Array) -> jax.Array:
    """[..., D] -> [..., blocks, BLOCK], filled up with zeros; a parameter of one dimension is one, too."""
    count = math.ceil(x.shape[-1] / BLOCK)
    missing = count * BLOCK - x.shape[-1]
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], count, BLOCK)


def _flat(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blocks.reshape(*shape[:-1], -1)[..., : shape[-1]]
