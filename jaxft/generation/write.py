"""The loop that writes: the prompts in one program, which gives the first token, then one program for all others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.generation.sampling import Text, chosen
from jaxft.generation.settings import Settings
from jaxft.layers.cache import Cache

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Written:
    """Texts that are being written, by rows."""

    ids_BM: jax.Array  # the text so far, then whatever
    done_B: jax.Array
    count: jax.Array  # tokens written, int32
    key_B: jax.Array
    cache: Cache


jax.tree_util.register_dataclass(Written, data_fields=["ids_BM", "done_B", "count", "key_B", "cache"], meta_fields=[])


def keys(seed: int, row_B: Any) -> jax.Array:
    """The key that each row draws by: its own, whatever rows it is in company with."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row_B)


def begin(model: Any, params: Any, batch: Batch, key_B: jax.Array, settings: Settings) -> Written:
    """Reads the prompts and writes a token. A row of padding alone is done."""
    logits_BV, cache = model.start(params, batch, settings.new - 1)
    ids_BL = first_ids(batch)
    ids_BM = jnp.pad(ids_BL, ((0, 0), (0, settings.new)), constant_values=settings.pad)
    done_B = batch["segment"].max(1) == 0
    start = Written(ids_BM, done_B, jnp.asarray(0, jnp.int32), key_B, cache)
    return _add(start, logits_BV, ids_BL.shape[1], settings)


def go_on(model: Any, params: Any, written: Written, until: jax.Array, settings: Settings) -> Written:
    """Writes until every text has ended or has `until` tokens beside its prompt. Rows that have ended get padding."""
    prompt = written.ids_BM.shape[1] - settings.new

    def more(now: Written) -> jax.Array:
        return (now.count < until) & ~now.done_B.all()

    def step(now: Written) -> Written:
        last_B1 = jax.lax.dynamic_slice_in_dim(now.ids_BM, prompt + now.count - 1, 1, axis=1)
        logits_BV, cache = model.next(params, one_more(last_B1, now.cache), now.cache)
        return _add(Written(now.ids_BM, now.done_B, now.count, now.key_B, cache), logits_BV, prompt, settings)

    return jax.lax.while_loop(more, step, written)


def _add(now: Written, logits_BV: jax.Array, prompt: int, settings: Settings) -> Written:
    text = text_of(now.ids_BM, now.cache, prompt, now.count)
    token_B = jnp.where(now.done_B, settings.pad, chosen(logits_BV, text, settings, now.key_B))
    ids_BM = jax.lax.dynamic_update_slice_in_dim(now.ids_BM, token_B[:, None], text.end, axis=1)
    done_B = now.done_B | ended(token_B, settings)
    return Written(ids_BM, done_B, now.count + 1, now.key_B, now.cache)


def ended(token: jax.Array, settings: Settings) -> jax.Array:
    return jnp.isin(token, jnp.asarray(settings.eos, jnp.int32))


def first_ids(batch: Batch) -> jax.Array:
    """What the text that is written begins with: the prompt, or of a decoder that reads a source its first token."""
    return batch["target_ids" if "target_ids" in batch else "ids"]


def text_of(ids_BM: jax.Array, cache: Cache, prompt: int, count: jax.Array) -> Text:
    end, M = prompt + count, ids_BM.shape[1]
    begins_B1 = padding(cache)[:, None]
    place_1M = jnp.arange(M)[None]
    return Text(ids_BM, (place_1M >= begins_B1) & (place_1M < end), end, count)


def one_more(id_B1: jax.Array, cache: Cache) -> dict[str, jax.Array]:
    """The batch of one more token a row."""
    return {"ids": id_B1, "segment": jnp.ones_like(id_B1), "position": cache.at - padding(cache)[:, None]}


def padding(cache: Cache) -> jax.Array:
    """How many places of each row come before its text, int32 [B]."""
    return (cache.segment_BM == 0).sum(1, dtype=jnp.int32)
