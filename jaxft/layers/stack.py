"""Equal blocks as one block whose parameters carry a leading N axis, run by scan or unrolled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.shown import show
from jaxft.sharding import constrain

Kind = Any  # hashable: a constant of the program

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matmul outputs, recompute the rest
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only each block's input
}


@dataclass(frozen=True)
class Execution:
    """How a model runs, apart from what it computes: dtype of matmuls, scan or unroll, what the backward recomputes,
    and who computes attention (layers.kernels.choice)."""

    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"
    attention: str = "auto"


def stack(block: nnx.Module, n: int) -> Any:
    """The same module with every parameter of shape [...] declared as [N, ...]."""
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param):
            one = variable.get_value()
            variable.set_value(jax.ShapeDtypeStruct((n, *one.shape), one.dtype))
            variable.set_metadata(axes=("N", *variable.get_metadata("axes")))
    return block


def run_one(
    block: Any,
    call: Callable[[Any, jax.Array, jax.Array | None], jax.Array],
    x_BLD: jax.Array,
    key: jax.Array | None,
    how: Execution,
) -> jax.Array:
    """`call(block, x, key)` of a block that has no equals."""
    structure, state = nnx.split(block)

    def body(x_BLD: jax.Array, params: Any, key: jax.Array | None) -> jax.Array:
        return call(nnx.merge(structure, params), x_BLD, key)

    if how.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[how.remat])
    return body(x_BLD, nnx.to_pure_dict(state), key)


def run_stack(
    blocks: Any,
    call: Callable[[Any, jax.Array, jax.Array | None, jax.Array | None, Kind], tuple[jax.Array, Any]],
    x_BLD: jax.Array,
    key: jax.Array | None,
    how: Execution,
    at_BS: jax.Array | None,
    kinds: Sequence[Kind],
) -> tuple[jax.Array, Any]:
    """Runs `call(block, x, key, at, kind)` for each of the N blocks in turn: [B, L, D], or [B, S, D] at places `at_BS`.

    `kinds` says for each block what sets it apart from its equals, as a constant of the program. What the calls leave
    aside beside x is summed over the blocks. What only a few places are read of need not be computed elsewhere: where
    the last block is unrolled, it is asked for these alone, and saves all but its keys and values. A scan treats all
    blocks alike and picks at the end, since cutting the last block off its stacked parameters would copy them. The
    numbers are the same but for the draw of dropout masks.
    """
    structure, stacked = nnx.split(blocks)
    params = nnx.to_pure_dict(stacked)
    n = jax.tree.leaves(params)[0].shape[0]
    layers = (params, None if key is None else jax.random.split(key, n))

    def body(x_BLD: jax.Array, layer: Any, kind: Kind, at_BS: jax.Array | None = None) -> tuple[jax.Array, Any]:
        one, layer_key = layer
        return call(nnx.merge(structure, one), x_BLD, layer_key, at_BS, kind)

    def recomputing(scanned: bool) -> Callable[..., Any]:
        if how.remat == "none":
            return body
        return jax.checkpoint(body, policy=REMAT[how.remat], prevent_cse=not scanned, static_argnums=(2,))

    asides = []
    scanned = _whole_turns(kinds) if how.scan else 0
    if scanned:
        first, layers = _cut(layers, scanned)
        x_BLD, aside = _scan(recomputing(scanned=True), x_BLD, first, kinds[:scanned])
        asides.append(aside)
    unrolled = recomputing(scanned=False)
    for i, layer in enumerate(_unstack(layers, n - scanned), scanned):
        x_BLD, aside = unrolled(x_BLD, layer, kinds[i], at_BS if i == n - 1 else None)
        show(x_BLD)
        asides.append(aside)
    if at_BS is not None and scanned == n:
        x_BLD = pick(x_BLD, at_BS)
    return x_BLD, jax.tree.map(lambda *parts: sum(parts), *asides)


def unstacked(blocks: Any) -> list[Any]:
    """The N blocks, each a module of its own. Their parameters may be tuples of N already (`apart`)."""
    structure, stacked = nnx.split(blocks)
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(stacked), is_leaf=lambda leaf: isinstance(leaf, tuple))
    layers = zip(*(leaf if isinstance(leaf, tuple) else jnp.unstack(leaf) for leaf in leaves), strict=True)
    return [nnx.merge(structure, jax.tree.unflatten(tree, layer)) for layer in layers]


def apart(stacked: Any, *, keep: bool = False) -> Any:
    """Every leaf as a tuple of its N, which takes its place in memory, or stands beside it (`keep`).

    A program that is called for every token would copy each layer's parameters to read them off the stack.
    """

    def cut(leaf: jax.Array) -> tuple[jax.Array, ...]:
        pieces = jax.block_until_ready(_pieces(leaf))
        if not keep:
            leaf.delete()
        return pieces

    return jax.tree.map(cut, stacked)


_pieces = jax.jit(lambda leaf: tuple(jnp.unstack(leaf)))


def period(kinds: Sequence[Kind]) -> int:
    """After how many they repeat, though the last time perhaps not to the end; all of them where they do not."""
    n = len(kinds)
    return next(p for p in range(1, n + 1) if all(kinds[i] == kinds[i - p] for i in range(p, n)))


def _whole_turns(kinds: Sequence[Kind]) -> int:
    """How many blocks from the first a scan takes: of kinds that repeat all whole turns, of others none.

    Taking only some copies the parameters once. 26 layers, five of six local, then compile in 7 s instead of 20 s with
    full remat and need 229 MB instead of 193 MB beside 97 MB of parameters; 24 layers, which divide, need 139 MB.
    """
    turn = period(kinds)
    return len(kinds) // turn * turn if len(kinds) >= 2 * turn else 0


def _scan(body: Callable[..., Any], x_BLD: jax.Array, layers: Any, kinds: Sequence[Kind]) -> tuple[jax.Array, Any]:
    """The blocks by `lax.scan`, one turn for as many as it takes until their kinds repeat (five local, one global)."""
    n, turn = len(kinds), period(kinds)

    def turn_body(x_BLD: jax.Array, group: Any) -> tuple[jax.Array, Any]:
        asides = []
        for i in range(turn):
            layer = group if turn == 1 else jax.tree.map(lambda leaf, i=i: leaf[i], group)
            x_BLD, aside = body(x_BLD, layer, kinds[i])
            asides.append(aside)
        return x_BLD, jax.tree.map(lambda *parts: sum(parts), *asides)

    if turn > 1:
        layers = jax.tree.map(lambda leaf: leaf.reshape(n // turn, turn, *leaf.shape[1:]), layers)
    x_BLD, asides = jax.lax.scan(turn_body, x_BLD, layers)
    return x_BLD, jax.tree.map(lambda leaf: leaf.sum(0), asides)


def pick(x_BLD: jax.Array, at_BS: jax.Array) -> jax.Array:
    """The vectors at positions `at_BS`, [B, S, D]."""
    return constrain(jnp.take_along_axis(x_BLD, at_BS[:, :, None], axis=1), "BSD")


def _cut(stacked: Any, at: int) -> tuple[Any, Any]:
    """The first `at` of every leaf, and the others."""
    leaves, structure = jax.tree.flatten(stacked)
    pairs = [jax.lax.split(leaf, (at, leaf.shape[0] - at)) for leaf in leaves]
    first, others = zip(*pairs, strict=True)
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, others)


def _unstack(stacked: Any, n: int) -> list[Any]:
    """The N slices of every leaf, by `split`: its gradient is one concatenation, that of indexing N padded sums."""
    leaves, structure = jax.tree.flatten(stacked)
    pieces = [[piece.squeeze(0) for piece in jax.lax.split(leaf, (1,) * n)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*pieces, strict=True)]
