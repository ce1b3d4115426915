"""What a network computes on the way, for who looks on while it is traced.

    with showing() as seen:
        logits = model(batch, key)  # seen: [B, L, D] of the embeddings, of each block, of the last one after the norm

As transformers' `hidden_states`. Nothing is left out then that only the head does not need.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_seen: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def showing() -> Iterator[list[jax.Array]]:
    """The vectors of each layer in order, of encoders and decoders whose blocks are unrolled."""
    seen: list[jax.Array] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def shown() -> bool:
    return _seen.get() is not None


def show(x_BLD: jax.Array, *, instead: bool = False) -> None:
    """Adds the vectors of a layer, or puts them `instead` of the last ones."""
    seen = _seen.get()
    if seen is not None:
        if instead:
            seen.pop()
        seen.append(x_BLD)
