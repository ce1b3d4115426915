"""The scaffold of every encoder and every decoder: embedding, blocks, final norm, head."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.attention import Sight, Where
from jaxft.layers.cache import Cache, memories, noted
from jaxft.layers.rope import Rope
from jaxft.layers.shown import show, shown
from jaxft.layers.stack import Execution, pick, run_one, run_stack, stack, unstacked
from jaxft.layers.virtual import Virtual
from jaxft.registry import UserError

Losses = dict[str, tuple[jax.Array, jax.Array]]  # what a network adds to the task's loss: name -> (sum, weight)


@dataclass(frozen=True)
class Reach:
    """How one layer attends: to earlier tokens only, within a window (0: none), with which rotary positions.

    `scale` multiplies its scores, beside the scale that all layers have.
    """

    causal: bool = False
    window: int = 0
    rope: Rope | None = None
    scale: float = 1.0

    def sight(self, batch: Mapping[str, jax.Array]) -> Sight:
        where = Where.within(batch["segment"], causal=self.causal, window=self.window)
        rotary = None if self.rope is None else self.rope.rotary(batch["position"])
        return Sight(where, rotary, scale=self.scale)

    def sight_of_next(self, batch: Mapping[str, jax.Array], cache: Cache) -> Sight:
        """The same of one more token a row."""
        at_BL = jnp.broadcast_to(cache.at, batch["segment"].shape)
        where = Where(batch["segment"], cache.segment_BM, at_BL, self.causal, self.window)
        rotary = None if self.rope is None else self.rope.rotary(batch["position"])
        return Sight(where, rotary, scale=self.scale)


class Trunk(nnx.Module):
    """Parameters are declared, not allocated (build.py does that)."""

    # What `encoder_flops` and `decoder_flops` count, for people.
    FLOPS_PER_TOKEN = (
        "6 x matmul weights + 12 x layers x attended tokens x d_model; in the last layer and the head "
        "of the tokens that the head reads, but for keys and values"
    )

    def __init__(
        self,
        embed: Any,
        block: Any,
        head: Any,
        how: Execution,
        reach: Sequence[Reach],
        norm: Any = None,
        *,
        first: Any = None,
        pool: Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array] | None = None,
    ):
        """`reach` has an item a layer. `block` stands for as many equal ones, but for the lowest where that is `first`.

        `norm` follows the last. `pool` makes of all vectors those that the head is given, instead of picking the ones
        that it reads.
        """
        self.how, self.reach, self.pool, self.virtual = how, tuple(reach), pool, Virtual()
        self.embed = embed
        self.first = first
        self.blocks = stack(block, len(reach) - (first is not None))
        self.norm = norm
        self.head = head

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, Losses]:
        """A batch (data/pipeline.py) to the head's logits in float32, and losses of its own; `key` None: evaluation."""
        key_embed, key_blocks, key_head = (None, None, None) if key is None else jax.random.split(key, 3)
        batch, own_BL = self.virtual.rows(batch, self.embed.most)
        sights = {reach: self.sight(reach, batch) for reach in dict.fromkeys(self.reach)}
        x_BLD, reach = self.embed(batch, key_embed, self.how.dtype), self.reach
        show(x_BLD)
        if self.first is not None:
            key_first, key_blocks = (None, None) if key_blocks is None else jax.random.split(key_blocks)
            lowest, *reach = reach
            x_BLD = run_one(
                self.first,
                lambda block, x_BLD, key: self.layer(lowest, block, x_BLD, sights[lowest], key, None)[0],
                x_BLD,
                key_first,
                self.how,
            )
            show(x_BLD)
        at_BS, looked_on = self.head.reads(batch) if self.pool is None else None, shown()
        if at_BS is None and self.pool is None:
            at_BS = own_BL
        read_BSD, aside = run_stack(
            self.blocks,
            lambda block, x_BLD, key, at_BS, reach: self.layer(reach, block, x_BLD, sights[reach], key, at_BS),
            x_BLD,
            key_blocks,
            self.how,
            None if looked_on else at_BS,
            reach,
        )
        if self.norm is not None:
            read_BSD = self.norm(read_BSD)
        if looked_on:
            show(read_BSD, instead=True)
            read_BSD = read_BSD if at_BS is None else pick(read_BSD, at_BS)
        if self.pool is not None:
            read_BSD = self.pool(read_BSD, batch)
        return self.head(read_BSD, key_head), self.losses(aside)

    @property
    def most(self) -> int | None:
        """The longest text that there are positions for; None: any."""
        return self.virtual.room(self.embed.most)

    @property
    def turn(self) -> int | None:
        """The length beyond which tokens have other angles, also those before it; None: there is none."""
        turns = [turn for reach in self.reach if reach.rope is not None and (turn := reach.rope.turn)]
        return self.virtual.room(turns[0]) if turns else None

    def start(self, batch: Mapping[str, jax.Array], room: int) -> tuple[Any, Cache]:
        """Rows of one text each that ends where the row does -> logits of the token that follows, and a cache.

        They are as the head gives them, of one token. The cache has `room` for that many tokens more. Raises UserError
        where a token's vector depends on later ones.
        """
        if not all(reach.causal for reach in self.reach) or self.first is not None:
            raise UserError("this model looks at later tokens too, and so it cannot write a text")
        batch, _ = self.virtual.rows(batch, self.embed.most)
        segment_BM = jnp.pad(batch["segment"], ((0, 0), (0, room)), constant_values=1)
        at = jnp.asarray(batch["segment"].shape[1], jnp.int32)
        return self._step(batch, Cache((), segment_BM, at), lambda reach: self.sight(reach, batch))

    def next(self, batch: Mapping[str, jax.Array], cache: Cache) -> tuple[Any, Cache]:
        """One more token of every row -> the same."""
        batch = self.virtual.next(batch)
        logits, moved = self._step(batch, cache, lambda reach: reach.sight_of_next(batch, cache))
        return logits, dataclasses.replace(moved, at=cache.at + 1)

    def _step(self, batch: Mapping[str, jax.Array], cache: Cache, sight: Callable[[Reach], Sight]) -> tuple[Any, Cache]:
        sights = {reach: sight(reach) for reach in dict.fromkeys(self.reach)}
        boxes = memories(cache.layers, len(self.reach), cache.at)
        x_BLD = self.embed(batch, None, self.how.dtype)
        for reach, block, box in zip(self.reach, unstacked(self.blocks), boxes, strict=True):
            told = dataclasses.replace(sights[reach], memory=box)
            x_BLD = self.layer(reach, block, x_BLD, told, None, None)[0]
        last_BLD = x_BLD[:, -1:] if self.norm is None else self.norm(x_BLD[:, -1:])
        layers = noted(boxes, cache.segment_BM.shape[1])
        return self.head(last_BLD, None), dataclasses.replace(cache, layers=layers)

    def sight(self, reach: Reach, batch: Mapping[str, jax.Array]) -> Sight:
        """What layers of this reach are told of the rows."""
        return reach.sight(batch)

    def layer(
        self, reach: Reach, block: Any, x_BLD: jax.Array, sight: Sight, key: jax.Array | None, at_BS: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """One layer, which is its block and no more."""
        return block(x_BLD, sight, key, at_BS)

    def losses(self, aside: Any) -> Losses:
        """Losses made of what the blocks left aside, summed over layers; routers have some."""
        return {}


def encoder_flops(*, layers: int, d_model: int, d_ff: int, attended: float, read: float) -> float:
    """Model FLOPs of one token of a BERT, forward and backward, that attends over `attended` tokens."""
    return trunk_flops(
        layers=layers,
        queries=2 * d_model**2,
        keys=2 * d_model**2,
        mlp=2 * d_model * d_ff,
        attended=attended * d_model,
        read=read,
    )


def trunk_flops(*, layers: int, queries: float, keys: float, mlp: float, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward.

    `queries` and `keys` are weights of a layer's query and output, and of its key and value projections, `mlp` those
    that a token meets in its feed-forward, `attended` the keys that a token attends to times the width of all heads.
    `read` is the share of the tokens whose vectors a head is given: what the last layer does for others is only keys
    and values. The head itself is left out.
    """
    whole = layers - 1 + read
    return 6 * (whole * (queries + mlp) + layers * keys) + 12 * whole * attended
