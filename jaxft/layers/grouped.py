"""Products of rows with one kernel a group: rows that lie sorted by group, any number of them in each.

`jax.lax.ragged_dot` is that, but on CPUs it multiplies every row with every kernel, so that there the rows are gone
through in blocks. Rows behind the last group belong to none: they give 0 and get no gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 128  # rows that a CPU multiplies at once: groups end within one, and smaller blocks are slower

ROWS_OF_BOTH = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=()
)


@jax.custom_vjp
def grouped(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Row j of [J, I] @ the kernel [I, O] of its group, [J, O]; `sizes_E` says how many rows each group has.

    Inside shard_map all three must vary over the same mesh axes.
    """
    return _rows(x_JI, kernel_EIO, sizes_E)


@jax.custom_vjp
def grouped_frozen(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """The same of kernels that stay, of which the backward pass makes no gradient."""
    return _rows(x_JI, kernel_EIO, sizes_E)


def _frozen_forward(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> tuple[jax.Array, Any]:
    return _rows(x_JI, kernel_EIO, sizes_E), (kernel_EIO, sizes_E)


def _frozen_backward(saved: Any, g_JO: jax.Array) -> tuple[jax.Array, None, None]:
    kernel_EIO, sizes_E = saved
    return _rows(g_JO, kernel_EIO.swapaxes(1, 2), sizes_E), None, None


grouped_frozen.defvjp(_frozen_forward, _frozen_backward)


def _forward(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> tuple[jax.Array, Any]:
    return _rows(x_JI, kernel_EIO, sizes_E), (x_JI, kernel_EIO, sizes_E)


def _backward(saved: Any, g_JO: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_JI, kernel_EIO, sizes_E = saved
    outer_EIO = jax.lax.platform_dependent(x_JI, g_JO, sizes_E, cpu=_outer_in_blocks, default=_outer_by_xla)
    return _rows(g_JO, kernel_EIO.swapaxes(1, 2), sizes_E), outer_EIO, None


grouped.defvjp(_forward, _backward)


def _rows(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x_JI, kernel_EIO, sizes_E, cpu=_rows_in_blocks, default=_rows_by_xla)


def _rows_by_xla(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    y_JO = jax.lax.ragged_dot(x_JI, kernel_EIO, sizes_E)
    grouped_J = jnp.arange(y_JO.shape[0]) < sizes_E.sum()
    return jnp.where(grouped_J[:, None], y_JO, 0)  # what a device leaves in the other rows is not said


def _outer_by_xla(x_JI: jax.Array, g_JO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot_general(x_JI, g_JO, sizes_E, ROWS_OF_BOTH)


def _rows_in_blocks(x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    rows, outputs = x_JI.shape[0], kernel_EIO.shape[2]
    start_E, count_E = _blocks(sizes_E)
    longer_JI = jnp.pad(x_JI, ((0, BLOCK), (0, 0)))

    def group(e: Any, y_JO: jax.Array) -> jax.Array:
        kernel_IO = kernel_EIO[e]

        def block(i: Any, y_JO: jax.Array) -> jax.Array:
            at = start_E[e] + i * BLOCK
            y = jax.lax.dynamic_slice_in_dim(longer_JI, at, BLOCK) @ kernel_IO
            return jax.lax.dynamic_update_slice_in_dim(y_JO, y, at, 0)

        return jax.lax.fori_loop(0, count_E[e], block, y_JO)

    # A group's last block writes beyond it: the next group overwrites that, and what is behind the last is set to 0.
    empty = _zeros(x_JI, rows + BLOCK, outputs)
    y_JO = jax.lax.fori_loop(0, kernel_EIO.shape[0], group, empty)
    return jax.lax.dynamic_update_slice_in_dim(y_JO, jnp.zeros_like(y_JO[:BLOCK]), sizes_E.sum(), 0)[:rows]


def _outer_in_blocks(x_JI: jax.Array, g_JO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    start_E, count_E = _blocks(sizes_E)
    longer_JI, longer_JO = (jnp.pad(rows, ((0, BLOCK), (0, 0))) for rows in (x_JI, g_JO))
    zero_IO = _zeros(x_JI, x_JI.shape[1], g_JO.shape[1])

    def group(e: Any, outer_EIO: jax.Array) -> jax.Array:
        def block(i: Any, outer_IO: jax.Array) -> jax.Array:
            at = start_E[e] + i * BLOCK
            inside = i * BLOCK + jnp.arange(BLOCK) < sizes_E[e]
            rows_JO = jnp.where(inside[:, None], jax.lax.dynamic_slice_in_dim(longer_JO, at, BLOCK), 0)
            return outer_IO + jax.lax.dynamic_slice_in_dim(longer_JI, at, BLOCK).T @ rows_JO

        outer_IO = jax.lax.fori_loop(0, count_E[e], block, zero_IO)
        return jax.lax.dynamic_update_index_in_dim(outer_EIO, outer_IO, e, 0)

    empty = _zeros(x_JI, sizes_E.shape[0], *zero_IO.shape)
    return jax.lax.fori_loop(0, sizes_E.shape[0], group, empty)


def _blocks(sizes_E: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First row of each group, and into how many blocks it is cut."""
    return jnp.cumsum(sizes_E) - sizes_E, (sizes_E + BLOCK - 1) // BLOCK


def _zeros(like: jax.Array, *shape: int) -> jax.Array:
    """Zeros that, inside shard_map, are said to vary over the same axes as `like`, as what a loop carries must."""
    return jax.lax.full_like(like, 0, shape=shape)
