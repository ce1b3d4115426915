"""Logits of the next token -> the token: what is forbidden, what is made less likely, what is drawn from.

The order and the arithmetic are those of transformers' logits processors, so that equal settings write equal texts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxft.generation.settings import Settings

NEVER = -jnp.inf


@dataclass(frozen=True)
class Text:
    """The texts so far: places of rows, of which some are padding before the text or yet to be written."""

    ids_BM: jax.Array
    real_BM: jax.Array  # which places hold a token
    end: jax.Array  # the place of the next one, int32
    count: jax.Array  # tokens that are written already, int32


def processed(logits_BV: jax.Array, text: Text, settings: Settings) -> jax.Array:
    """The scores of the next token by everything but the drawing: float32 [B, V]."""
    penalty = settings.repetition_penalty
    if penalty != 1:
        lower_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
        logits_BV = jnp.where(_named(text.ids_BM, text.real_BM, logits_BV.shape[1]), lower_BV, logits_BV)
    if settings.no_repeat_ngram_size:
        logits_BV = jnp.where(_repeating(text, settings.no_repeat_ngram_size, logits_BV.shape[1]), NEVER, logits_BV)
    V = logits_BV.shape[1]
    logits_BV = jnp.where(_one_of(settings.never, V), NEVER, logits_BV)
    short_B = (text.real_BM.sum(1) < settings.min_length) | (text.count < settings.min_new_tokens)
    logits_BV = jnp.where(short_B[:, None] & _one_of(settings.eos, V), NEVER, logits_BV)
    for forced, at in ((settings.forced_first, 0), (settings.forced_last, settings.new - 1)):
        if forced:
            only_1V = jnp.where(_one_of(forced, V), 0.0, NEVER)
            logits_BV = jnp.where(text.count == at, only_1V, logits_BV)
    logits_BV = jnp.where(_one_of(settings.suppressed, V), NEVER, logits_BV)
    at_first = text.count == (1 if settings.forced_first else 0)
    return jnp.where(at_first & _one_of(settings.suppressed_first, V), NEVER, logits_BV)


def narrowed(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """The scores that are drawn from: warmer or colder, and -inf where a token is among the unlikely ones."""
    if settings.temperature != 1:
        logits_BV = logits_BV / settings.temperature
    if settings.top_k:
        least_B1 = jax.lax.top_k(logits_BV, min(settings.top_k, logits_BV.shape[1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, NEVER, logits_BV)
    if settings.top_p < 1:
        order_BV = jnp.argsort(logits_BV, axis=1)
        below_BV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=1), axis=1), axis=1)
        unlikely_BV = (below_BV <= 1 - settings.top_p).at[:, -1].set(False)
        logits_BV = jnp.where(jnp.take_along_axis(unlikely_BV, jnp.argsort(order_BV, axis=1), axis=1), NEVER, logits_BV)
    if settings.min_p:
        share_BV = jax.nn.softmax(logits_BV, axis=1)
        logits_BV = jnp.where(share_BV < settings.min_p * share_BV.max(1, keepdims=True), NEVER, logits_BV)
    return logits_BV


def chosen(logits_BV: jax.Array, text: Text, settings: Settings, key_B: jax.Array) -> jax.Array:
    """The next token of every row, int32 [B]: the likeliest one, or drawn by the row's own key and its length."""
    scores_BV = processed(logits_BV, text, settings)
    if not settings.sample:
        return jnp.argmax(scores_BV, axis=1).astype(jnp.int32)
    scores_BV = narrowed(scores_BV, settings)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, text.count)
    return jax.vmap(jax.random.categorical)(keys_B, scores_BV).astype(jnp.int32)


def _one_of(ids: tuple[int, ...], vocab: int) -> jax.Array:
    """bool [1, V]"""
    return jnp.isin(jnp.arange(vocab), jnp.asarray(ids, jnp.int32))[None]


def _named(ids_BX: jax.Array, there_BX: jax.Array, vocab: int) -> jax.Array:
    """Which tokens of the vocabulary a row holds at places that are there, bool [B, V]."""
    row_B1 = jnp.arange(ids_BX.shape[0])[:, None]
    return jnp.zeros((ids_BX.shape[0], vocab), bool).at[row_B1, ids_BX].max(there_BX)


def _repeating(text: Text, n: int, vocab: int) -> jax.Array:
    """Which tokens would end n tokens in a row that the text has had before, bool [B, V]."""
    M = text.ids_BM.shape[1]
    runs = M - n + 1  # of n tokens
    if runs < 1:
        return jnp.zeros((text.ids_BM.shape[0], vocab), bool)
    last = jax.lax.dynamic_slice_in_dim(text.ids_BM, text.end - n + 1, n - 1, axis=1)
    alike = text.real_BM[:, :runs] & text.real_BM[:, n - 1 :]
    for i in range(n - 1):
        alike &= text.ids_BM[:, i : i + runs] == last[:, i : i + 1]
    return _named(text.ids_BM[:, n - 1 :], alike, vocab)
