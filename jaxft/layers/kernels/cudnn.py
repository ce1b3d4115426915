"""Attention by cuDNN's flash kernels, through jax.nn.dot_product_attention: half precision on NVIDIA GPUs.

Segments, and windows that are not causal, are told by a mask [B, 1, L, M]: jax offers no other way for packed rows. In
bfloat16 it is 2 x heads times smaller than the scores of the dense computation, but grows with the square of the
length all the same. Causality and its window are told as such, so that the kernel leaves blocks out.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import jax

from jaxft.layers.kernels.devices import per_device

if TYPE_CHECKING:
    from jaxft.layers.attention import Where


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: "Where",
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As layers.attention.attention, of queries that are scaled already and stand where the keys do.

    `implementation` "xla" asks the same of plain XLA, for tests.
    """
    run = functools.partial(_attend, where=where, implementation=implementation)
    return per_device(run, q_BLHK, k_BMGK, v_BMGK, where)


def _attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    query_BL: jax.Array,
    key_BM: jax.Array,
    *,
    where: "Where",
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    window = (where.window - 1, 0) if where.causal and where.window else None
    # What is left for the mask: segments, and a window to both sides.
    rest = dataclasses.replace(
        where, query_BL=query_BL, key_BM=key_BM, causal=False, window=0 if where.causal else where.window
    )
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BMGK,
        v_BMGK,
        mask=rest.mask_BLM()[:, None],
        scale=1.0,
        is_causal=where.causal,
        local_window_size=window,
        implementation=implementation,
    )
