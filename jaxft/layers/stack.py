"""Equal blocks as one block whose parameters carry a leading N axis, run by scan or unrolled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.sharding import constrain

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matmul outputs, recompute the rest
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only each block's input
}


@dataclass(frozen=True)
class Execution:
    """How a model runs, apart from what it computes: dtype of matmuls, scan or unroll, what the backward recomputes."""

    dtype: Any = jnp.float32
    scan: bool = False
    remat: str = "none"


def stack(block: nnx.Module, n: int) -> Any:
    """The same module with every parameter of shape [...] declared as [N, ...]."""
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param):
            one = variable.get_value()
            variable.set_value(jax.ShapeDtypeStruct((n, *one.shape), one.dtype))
            variable.set_metadata(axes=("N", *variable.get_metadata("axes")))
    return block


def run_stack(
    blocks: Any,
    call: Callable[[Any, jax.Array, jax.Array | None, jax.Array | None], jax.Array],
    x_BLD: jax.Array,
    key: jax.Array | None,
    how: Execution,
    at_BS: jax.Array | None = None,
) -> jax.Array:
    """Runs `call(block, x, key, at)` for each of the N blocks in turn: [B, L, D], or [B, S, D] at positions `at_BS`.

    What only a few positions are read of need not be computed elsewhere: unrolled, the last block is asked for these
    alone, and saves all but its keys and values. A scan treats all blocks alike and picks at the end, since cutting the
    last block off its stacked parameters would copy them. The numbers are the same but for the draw of dropout masks.
    """
    structure, stacked = nnx.split(blocks)
    params = nnx.to_pure_dict(stacked)
    n = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, n)

    def body(x_BLD: jax.Array, layer: Any, at_BS: jax.Array | None = None) -> tuple[jax.Array, None]:
        one, layer_key = layer
        return call(nnx.merge(structure, one), x_BLD, layer_key, at_BS), None

    if how.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[how.remat], prevent_cse=not how.scan)
    if how.scan:
        x_BLD, _ = jax.lax.scan(body, x_BLD, (params, keys))
        return x_BLD if at_BS is None else pick(x_BLD, at_BS)
    *below, last = _unstack((params, keys), n)
    for layer in below:
        x_BLD, _ = body(x_BLD, layer)
    return body(x_BLD, last, at_BS)[0]


def pick(x_BLD: jax.Array, at_BS: jax.Array) -> jax.Array:
    """The vectors at positions `at_BS`, [B, S, D]."""
    return constrain(jnp.take_along_axis(x_BLD, at_BS[:, :, None], axis=1), "BSD")


def _unstack(stacked: Any, n: int) -> list[Any]:
    """The N slices of every leaf, by `split`: its gradient is one concatenation, that of indexing N padded sums."""
    leaves, structure = jax.tree.flatten(stacked)
    pieces = [[piece.squeeze(0) for piece in jax.lax.split(leaf, (1,) * n)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*pieces, strict=True)]
