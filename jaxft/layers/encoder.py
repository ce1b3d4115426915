"""The scaffold of every encoder: embedding, equal blocks, head."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxft.layers.attention import Where
from jaxft.layers.stack import Execution, run_stack, stack


class Encoder(nnx.Module):
    """Parameters are declared, not allocated (build.py does that)."""

    # What `encoder_flops` counts, for people.
    FLOPS_PER_TOKEN = (
        "6 x matmul weights + 12 x layers x attended tokens x d_model; of the last layer keys, values only"
    )

    def __init__(self, embed: Callable[..., jax.Array], block: nnx.Module, layers: int, head: Any, how: Execution):
        self.how = how
        self.embed = embed
        self.blocks = stack(block, layers)
        self.head = head

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """A batch (data/pipeline.py) to the head's logits in float32; `key` None means evaluation."""
        key_embed, key_blocks, key_head = (None, None, None) if key is None else jax.random.split(key, 3)
        where = Where.within(batch["segment"])
        read_BSD = run_stack(
            self.blocks,
            lambda block, x_BLD, key, at_BS: block(x_BLD, where, key, at_BS),
            self.embed(batch, key_embed, self.how.dtype),
            key_blocks,
            self.how,
            self.head.reads(batch),
        )
        return self.head(read_BSD, key_head)


def encoder_flops(*, layers: int, d_model: int, d_ff: int, attended: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens.

    Left out is what is computed once an example: heads, and the last layer but for its keys and values.
    """
    below = layers - 1
    weights = below * (4 * d_model**2 + 2 * d_model * d_ff) + 2 * d_model**2
    return 6 * weights + 12 * below * attended * d_model
