"""Equal blocks as one block whose parameters carry a leading N axis, run by scan or unrolled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

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
    call: Callable[[Any, jax.Array, jax.Array | None], jax.Array],
    x: jax.Array,
    key: jax.Array | None,
    how: Execution,
) -> jax.Array:
    """Runs `call(block, x, key)` for each of the N blocks in turn. Scan and unrolled give the same numbers."""
    structure, stacked = nnx.split(blocks)
    params = nnx.to_pure_dict(stacked)
    n = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, n)

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        one, layer_key = layer
        return call(nnx.merge(structure, one), x, layer_key), None

    if how.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[how.remat], prevent_cse=not how.scan)
    if how.scan:
        return jax.lax.scan(body, x, (params, keys))[0]
    for layer in _unstack((params, keys), n):
        x, _ = body(x, layer)
    return x


def _unstack(stacked: Any, n: int) -> list[Any]:
    """The N slices of every leaf, by `split`: its gradient is one concatenation, that of indexing N padded sums."""
    leaves, structure = jax.tree.flatten(stacked)
    pieces = [[piece.squeeze(0) for piece in jax.lax.split(leaf, (1,) * n)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*pieces, strict=True)]
