"""Beam search: of every prompt several texts are carried on, the likeliest ones, and the best that ended is given.

The rules, also those by which a search stops, are those of transformers. U: texts (beams) of a prompt; C: candidates.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.generation.sampling import processed
from jaxft.generation.settings import Settings
from jaxft.generation.write import Batch, ended, first_ids, one_more, text_of
from jaxft.layers.cache import Cache

OUT = -1.0e9  # added to the score of what must not be taken; finite, so that an order is left among such


@dataclass(frozen=True)
class Beams:
    """The search for every prompt. The rows of `cache` are those of running texts, B x U."""

    ids_BUM: jax.Array  # running texts
    score_BU: jax.Array  # sum of log probabilities
    best_ids_BUM: jax.Array  # texts that have ended, the best first
    best_score_BU: jax.Array  # those sums, by length
    ended_BU: jax.Array  # which of them there are
    open_B: jax.Array  # whether a running text may still be better
    count: jax.Array  # tokens written, int32
    cache: Cache


jax.tree_util.register_dataclass(Beams, data_fields=[field.name for field in dataclasses.fields(Beams)], meta_fields=[])


def begin(model: Any, params: Any, batch: Batch, key_B: jax.Array, settings: Settings) -> Beams:
    """Reads the prompts, each once, and writes a token of every text; of a row of padding alone nothing is searched.

    `key_B` is there as in write.begin: nothing is drawn.
    """
    logits_BV, cache = model.start(params, batch, settings.new - 1)
    ids_BL, U = first_ids(batch), settings.beams
    ids_BM = jnp.pad(ids_BL, ((0, 0), (0, settings.new)), constant_values=settings.pad)
    ids_BUM = jnp.repeat(ids_BM[:, None], U, axis=1)
    real_B = batch["segment"].max(1) > 0
    # All texts of a prompt are one still: only the first counts, or the others would repeat it.
    score_BU = jnp.broadcast_to(jnp.where(jnp.arange(U) == 0, 0.0, OUT)[None], ids_BUM.shape[:2])
    start = Beams(
        ids_BUM,
        score_BU,
        ids_BUM,
        jnp.full_like(score_BU, OUT),
        jnp.zeros_like(score_BU, bool),
        real_B,
        jnp.asarray(0, jnp.int32),
        cache.repeat(U),
    )
    return _advance(start, jnp.repeat(logits_BV, U, axis=0), ids_BL.shape[1], settings)


def go_on(model: Any, params: Any, beams: Beams, until: jax.Array, settings: Settings) -> Beams:
    """Searches until nothing can become better, or the texts have `until` tokens."""
    prompt = beams.ids_BUM.shape[2] - settings.new

    def more(now: Beams) -> jax.Array:
        open_B = now.open_B & ~now.ended_BU.all(1) if settings.early_stopping is True else now.open_B
        return (now.count < until) & open_B.any()

    def step(now: Beams) -> Beams:
        last_BU = jax.lax.dynamic_index_in_dim(now.ids_BUM, prompt + now.count - 1, axis=2, keepdims=False)
        logits_BV, cache = model.next(params, one_more(last_BU.reshape(-1, 1), now.cache), now.cache)
        return _advance(dataclasses.replace(now, cache=cache), logits_BV, prompt, settings)

    return jax.lax.while_loop(more, step, beams)


def _advance(now: Beams, logits: jax.Array, prompt: int, settings: Settings) -> Beams:
    """One token more of every text. `logits` are those of the rows of the cache."""
    B, U, M = now.ids_BUM.shape
    text = text_of(now.ids_BUM.reshape(-1, M), now.cache, prompt, now.count)
    scores_BV = processed(jax.nn.log_softmax(logits, axis=1), text, settings)
    if settings.renormalize:
        scores_BV = jax.nn.log_softmax(scores_BV, axis=1)
    scores_BUV = scores_BV.reshape(B, U, -1)
    V, candidates = scores_BUV.shape[2], U * max(2, 1 + len(settings.eos))  # enough for U that do not end
    score_BC, index_BC = jax.lax.top_k((scores_BUV + now.score_BU[:, :, None]).reshape(B, -1), candidates)
    beam_BC, token_BC = index_BC // V, (index_BC % V).astype(jnp.int32)
    ids_BCM = jax.lax.dynamic_update_slice_in_dim(_take(now.ids_BUM, beam_BC), token_BC[:, :, None], text.end, axis=2)
    count = now.count + 1
    ends_BC = ended(token_BC, settings) | (count >= settings.new)

    running_BC = score_BC + jnp.where(ends_BC, OUT, 0.0)
    score_BU, taken_BU = jax.lax.top_k(running_BC, U)
    row_BU = jnp.arange(B)[:, None] * U + _take(beam_BC, taken_BU)
    found = _found(now, ids_BCM, score_BC, ends_BC, count, settings)
    return dataclasses.replace(
        found,
        ids_BUM=_take(ids_BCM, taken_BU),
        score_BU=score_BU,
        open_B=now.open_B & _may_improve(found, score_BU, count, settings),
        count=count,
        cache=now.cache.gather(row_BU.reshape(-1)),
    )


def _found(
    now: Beams, ids_BCM: jax.Array, score_BC: jax.Array, ends_BC: jax.Array, count: jax.Array, settings: Settings
) -> Beams:
    """The texts that have ended, with those candidates that do so now and are good enough."""
    new_BC = ends_BC & (jnp.arange(ends_BC.shape[1]) < settings.beams)[None]
    closed_B = ~now.open_B
    if settings.early_stopping is True:
        closed_B |= now.ended_BU.all(1)
    out_BC = jnp.where(new_BC, 0.0, OUT) + jnp.where(closed_B, OUT, 0.0)[:, None]
    by_length_BC = score_BC / count.astype(jnp.float32) ** settings.length_penalty + out_BC
    score_BX = jnp.concatenate([now.best_score_BU, by_length_BC], axis=1)
    score_BU, taken_BU = jax.lax.top_k(score_BX, settings.beams)
    return dataclasses.replace(
        now,
        best_ids_BUM=_take(jnp.concatenate([now.best_ids_BUM, ids_BCM], axis=1), taken_BU),
        best_score_BU=score_BU,
        ended_BU=_take(jnp.concatenate([now.ended_BU, new_BC], axis=1), taken_BU),
    )


def _may_improve(found: Beams, score_BU: jax.Array, count: jax.Array, settings: Settings) -> jax.Array:
    """Whether the best running text, at the length that flatters it, beats the worst that has ended; bool [B]."""
    longest = settings.early_stopping == "never" and settings.length_penalty > 0
    length = jnp.asarray(settings.new if longest else count, jnp.float32)
    worst_BU = jnp.where(found.ended_BU, found.best_score_BU.min(1, keepdims=True), OUT)
    return (score_BU[:, :1] / length**settings.length_penalty > worst_BU).any(1)


def _take(of: jax.Array, index_BX: jax.Array) -> jax.Array:
    """`of` [B, U, ...] at `index_BX` along its second axis."""
    return jnp.take_along_axis(of, index_BX.reshape(index_BX.shape + (1,) * (of.ndim - 2)), axis=1)
