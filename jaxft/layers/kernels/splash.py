"""Attention by the Pallas kernels for TPUs that jax brings along: blocks that a mask rules out are not computed.

Nothing of [L, M] is in memory: causality, windows and segments are looked up or computed in the kernel.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.kernels.devices import per_device

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

LANES = 128  # of a TPU's vector registers: lengths are multiples of it
BLOCKS = (512, 256, LANES)  # queries and keys of a block: the largest that divides the length


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: "Where",
    *,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """As layers.attention.attention, of queries that are scaled already and stand where the keys do.

    `interpret` runs the kernels on a CPU, for tests.
    """
    run = functools.partial(_attend, causal=where.causal, window=where.window, softcap=softcap, interpret=interpret)
    return per_device(run, q_BLHK, k_BMGK, v_BMGK, where)


def _attend(
    q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, query_BL: jax.Array, key_BM: jax.Array, **options: Any
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    _, L, H, _ = q_BLHK.shape
    kernel = _kernel(H, L, k_BMGK.shape[1], **options)
    q_BHLK, k_BGMK, v_BGMK = (jnp.moveaxis(x, 2, 1) for x in (q_BLHK, k_BMGK, v_BMGK))
    return jnp.moveaxis(jax.vmap(kernel)(q_BHLK, k_BGMK, v_BGMK, SegmentIds(query_BL, key_BM)), 1, 2)


@functools.lru_cache(maxsize=64)
def _kernel(H: int, L: int, M: int, *, causal: bool, window: int, softcap: float, interpret: bool) -> Any:
    """The kernel of H heads that share a mask. Looking which blocks it rules out takes a second at 16,384 tokens."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask: Any = splash.FullMask((L, M))
    if causal and window:
        mask = splash.LocalMask((L, M), (window - 1, 0), 0)
    elif causal:
        mask = splash.CausalMask((L, M))
    elif window:
        mask = splash.LocalMask((L, M), (window, window), 0)
    block_l, block_m = (next(block for block in BLOCKS if length % block == 0) for length in (L, M))
    sizes = splash.BlockSizes(
        block_q=block_l,
        block_kv=block_m,
        block_q_dkv=block_l,
        block_kv_dkv=block_m,
        block_q_dq=block_l,
        block_kv_dq=block_m,
    )
    with jax.ensure_compile_time_eval():  # what is cached must not belong to a trace
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * H),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap or None,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
