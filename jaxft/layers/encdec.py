"""The scaffold of every encoder-decoder: words, an encoder, a decoder that attends over its output, a head.

Beside the source (ids, segment, position) a batch holds the target, packed alike: `target_ids` (what the decoder reads:
the answer, moved right), `target_segment` and `target_position`, int32 [B, L'] with a row length of its own. Segment s
of a row's target answers segment s of its source. Heads that judge the source itself take no target: the decoder then
reads the source once more, moved right.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.attention import Sight, Where
from jaxft.layers.cache import Cache, memories, noted
from jaxft.layers.cross import SideBlock, Source
from jaxft.layers.dropout import dropout
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.relative import RelativeBias
from jaxft.layers.stack import Execution, run_stack, stack, unstacked
from jaxft.layers.trunk import Losses, trunk_flops
from jaxft.layers.virtual import Batch, Virtual


@dataclass(frozen=True)
class Tokens:
    """One side of a batch, int32 [B, L] each."""

    ids_BL: jax.Array
    segment_BL: jax.Array
    position_BL: jax.Array

    @classmethod
    def of(cls, batch: Batch, side: str = "") -> Self:
        """Those of the source or, `side` "target_", of the target."""
        return cls(batch[f"{side}ids"], batch[f"{side}segment"], batch[f"{side}position"])

    def moved_right(self, start_id: int) -> "Tokens":
        """Each text begins with `start_id` and loses its last token."""
        before_BL = jnp.roll(self.ids_BL, 1, axis=1)
        ids_BL = jnp.where(self.position_BL == 0, start_id, before_BL)
        return Tokens(ids_BL, self.segment_BL, self.position_BL)


class SideEmbed(nnx.Module):
    """What a side adds to its words: positions (absolute ones, or a `relative` bias), a norm, dropout.

    `first_position` is the number of the first token of a text in the table of positions, which has room for texts of
    `most` tokens (None: any).
    """

    def __init__(
        self,
        *,
        drop: float,
        position: Any = None,
        most: int | None = None,
        first_position: int = 0,
        norm: Any = None,
        relative: RelativeBias | None = None,
    ):
        self.drop, self.first_position, self.most = drop, first_position, most
        self.position, self.norm, self.relative = position, norm, relative

    def __call__(self, x_BLD: jax.Array, position_BL: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.position is not None:
            x_BLD = x_BLD + self.position(position_BL + self.first_position, x_BLD.dtype)
        if self.norm is not None:
            x_BLD = self.norm(x_BLD)
        return dropout(x_BLD, self.drop, key)


class Side(nnx.Module):
    """The encoder or, `causal`, the decoder: `layers` blocks like `block`; `norm`, if there is one, and dropout."""

    def __init__(
        self, embed: SideEmbed, block: SideBlock, layers: int, how: Execution, *, causal: bool, norm: Any = None
    ):
        self.layers, self.how, self.causal, self.virtual = layers, how, causal, Virtual()
        self.embed = embed
        self.blocks = stack(block, layers)
        self.norm = norm

    def __call__(
        self,
        x_BLD: jax.Array,
        tokens: Tokens,
        source: Source | None,
        key: jax.Array | None,
        at_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Words [B, L, D] -> [B, L, D], or [B, S, D] at the places `at_BS` alone."""
        key_embed, key_blocks, key_norm = (None, None, None) if key is None else jax.random.split(key, 3)
        relative, L = self.embed.relative, x_BLD.shape[1]
        self.virtual.check(L, self.embed.most, "task.target_length")
        bias_BHLM = None if relative is None else relative(L)
        where = Where.within(tokens.segment_BL, causal=self.causal)
        sight = Sight(where, bias_BHLM=bias_BHLM, prefix_BHLM=self._before(tokens, L))
        x_BLD, _ = run_stack(
            self.blocks,
            lambda block, x_BLD, key, at_BS, kind: block(x_BLD, sight, source, key, at_BS),
            self.embed(x_BLD, tokens.position_BL + self.virtual.tokens, key_embed),
            key_blocks,
            self.how,
            at_BS,
            [None] * self.layers,
        )
        return x_BLD if self.norm is None else dropout(self.norm(x_BLD), self.embed.drop, key_norm)

    def step(self, x_BLD: jax.Array, tokens: Tokens, over_BMD: jax.Array | None, cache: Cache) -> tuple[Any, Cache]:
        """The first words of a target, or one more of each -> [B, L, D], and the cache with them.

        `over_BMD` is the encoder's output, None where the cache has what is needed of it.
        """
        first, relative, M = not cache.layers, self.embed.relative, cache.segment_BM.shape[1]
        if first:
            where = Where.within(tokens.segment_BL, causal=True)
            bias_BHLM = None if relative is None else relative(x_BLD.shape[1])
        else:
            at_BL = jnp.broadcast_to(cache.at, tokens.segment_BL.shape)
            where = Where(tokens.segment_BL, cache.segment_BM, at_BL, causal=True)
            bias_BHLM = None if relative is None else relative.of_one(cache.at, M)
        assert cache.source_segment_BM is not None
        across = Where(tokens.segment_BL, cache.source_segment_BM)
        own, of_source = memories(cache.layers, self.layers, cache.at), memories(cache.source, self.layers)
        x_BLD, prefix_BHLM = self.embed(x_BLD, tokens.position_BL + self.virtual.tokens, None), self._before(tokens, M)
        for block, mine, read in zip(unstacked(self.blocks), own, of_source, strict=True):
            sight = Sight(where, bias_BHLM=bias_BHLM, prefix_BHLM=prefix_BHLM, memory=mine)
            x_BLD, _ = block(x_BLD, sight, Source(over_BMD, Sight(across, memory=read)), None)
        kept = dataclasses.replace(cache, layers=noted(own, M), source=tuple(box.pair for box in of_source))
        return x_BLD if self.norm is None else self.norm(x_BLD), kept

    def _before(self, tokens: Tokens, most: int) -> jax.Array | None:
        """What is added to the scores of virtual tokens before texts of up to `most` tokens."""
        relative, count = self.embed.relative, self.virtual.tokens
        return relative.before(tokens.position_BL, count, most) if relative is not None and count else None


class EncDec(nnx.Module):
    """Parameters are declared, not allocated (build.py does that)."""

    # What `encdec_flops` counts, for people.
    FLOPS_PER_TOKEN = (
        "of a source and a target token: 6 x matmul weights + 12 x layers x attended tokens x width of all heads; "
        "in the decoder's last layer and the head of the tokens that the head reads, but for keys and values"
    )

    def __init__(
        self,
        embed: TokenEmbed,
        encoder: Side,
        decoder: Side | None,
        head: Any,
        how: Execution,
        *,
        start_id: int,
        answers: bool,
        still_id: int | None = None,
    ):
        """`decoder` None: the head stands on the encoder. `answers`: the batch holds a target.

        `start_id` is what the decoder reads first where it reads the source. Looking up the word `still_id` trains it
        not, as padding_idx has it in torch: there are models that begin a target with their padding.
        """
        self.how, self.start_id, self.answers, self.still_id = how, start_id, answers, still_id
        self.virtual = Virtual()  # before each source
        self.embed, self.encoder, self.decoder, self.head = embed, encoder, decoder, head

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, Losses]:
        """A batch to the head's logits in float32, and losses of its own: none; `key` None: evaluation."""
        key_encoder, key_decoder, key_head = (None, None, None) if key is None else jax.random.split(key, 3)
        batch, _ = self.virtual.rows(batch, self.encoder.embed.most)
        source, reads_BS = Tokens.of(batch), self.head.reads(batch)
        if self.decoder is None:
            return self.head(self.encoder(self._words(source), source, None, key_encoder, reads_BS), key_head), {}
        over_BMD = self.encoder(self._words(source), source, None, key_encoder)
        target = source.moved_right(self.start_id)
        if self.answers:
            target = Tokens.of(batch, "target_")
        seen = Source(over_BMD, Sight(Where(target.segment_BL, source.segment_BL)))
        return self.head(self.decoder(self._words(target), target, seen, key_decoder, reads_BS), key_head), {}

    turn = None  # no angles

    @property
    def most(self) -> int | None:
        """As Trunk.most, of a source and of a target each."""
        sides = (self.virtual, self.decoder.virtual) if self.decoder is not None else (self.virtual,)
        return max(sides, key=lambda virtual: virtual.tokens).room(self.encoder.embed.most)

    def start(self, batch: Mapping[str, jax.Array], room: int) -> tuple[Any, Cache]:
        """As Trunk.start: logits of what follows on `target_ids`, and a cache with `room` for more tokens."""
        assert self.decoder is not None and self.answers
        batch, _ = self.virtual.rows(batch, self.encoder.embed.most)
        source, target = Tokens.of(batch), Tokens.of(batch, "target_")
        segment_BM = jnp.pad(target.segment_BL, ((0, 0), (0, room)), constant_values=1)
        at = jnp.asarray(target.ids_BL.shape[1], jnp.int32)
        cache = Cache((), segment_BM, at, (), source.segment_BL)
        over_BMD = self.encoder(self._words(source), source, None, None)
        x_BLD, cache = self.decoder.step(self._words(target), target, over_BMD, cache)
        return self.head(x_BLD[:, -1:], None), cache

    def next(self, batch: Mapping[str, jax.Array], cache: Cache) -> tuple[Any, Cache]:
        """One more token of every target -> the same."""
        assert self.decoder is not None and self.answers
        target = Tokens.of(batch)
        x_BLD, cache = self.decoder.step(self._words(target), target, None, cache)
        return self.head(x_BLD, None), dataclasses.replace(cache, at=cache.at + 1)

    def _words(self, tokens: Tokens) -> jax.Array:
        x_BLD = self.embed({"ids": tokens.ids_BL}, None, self.how.dtype)
        if self.still_id is None:
            return x_BLD
        return jnp.where((tokens.ids_BL == self.still_id)[:, :, None], jax.lax.stop_gradient(x_BLD), x_BLD)


def encdec_flops(
    *, layers: int, decoder_layers: int, attention: float, mlp: float, decoder_mlp: float, attended: float, read: float
) -> float:
    """Model FLOPs of one source token and one target token, forward and backward.

    `attention` are the weights of one attention's four projections, `mlp` those of a feed-forward, `attended` the
    tokens that a source token attends to times the width of all heads.
    """
    encoder = layers * (6 * (attention + mlp) + 12 * attended)
    # A target token attends to half of the others, being causal, and to the whole source.
    decoder = trunk_flops(
        layers=decoder_layers, queries=attention, keys=attention, mlp=decoder_mlp, attended=1.5 * attended, read=read
    )
    return encoder + decoder
