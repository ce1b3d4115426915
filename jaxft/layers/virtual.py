"""Virtual tokens: trained vectors that stand before every text, seen by all of its tokens and never out of sight.

Either the rows hold them, as tokens that are embedded like words (prompt tuning), or they are nothing but keys and
values that each attention has of its own (prefix tuning). The positions of a text begin after them in both cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.registry import UserError

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Virtual:
    """`tokens` before every text; `inserted`: the rows hold them."""

    tokens: int = 0
    inserted: bool = False

    def rows(self, batch: Batch, most: int | None) -> tuple[Batch, jax.Array | None]:
        """(rows as the network sees them, where the tokens of `batch` stand in these [B, L]; None: where they stood).

        Virtual token p has the id -1 - p. `first` becomes the first virtual token of each text. `most`: positions that
        there are, None: any number. Raises UserError where a text may not find room beside them.
        """
        if not self.tokens:
            return batch, None
        self.check(batch["segment"].shape[1], most, "input.length")
        moved = {**batch, "position": batch["position"] + self.tokens}
        return self._inserted(moved) if self.inserted else (moved, None)

    def check(self, length: int, most: int | None, field: str) -> None:
        """Raises UserError where a text of `length` tokens does not find room beside them."""
        if self.tokens and most is not None and length + self.tokens > most:
            left = most - self.tokens
            fix = f"set {field} to {left} or less" if left > 0 else "take fewer tokens"
            raise UserError(
                f"{field}={length} and peft.tokens={self.tokens} exceed the {most} positions of the model; {fix}"
            )

    def next(self, batch: Batch) -> Batch:
        """One more token a row, of a text that began as `rows`; its position counts the tokens that the cache holds."""
        return batch if self.inserted else {**batch, "position": batch["position"] + self.tokens}

    def room(self, most: int | None) -> int | None:
        """Of so many positions those that are left for a text."""
        return None if most is None else most - self.tokens

    def _inserted(self, batch: Batch) -> tuple[Batch, jax.Array]:
        """Every text of a packed row is given virtual tokens of its own, so that a row grows by those of all slots."""
        segment_BL, P = batch["segment"], self.tokens
        B, L = segment_BL.shape
        # Rows that are written on come without slots, and hold one text.
        S = next((batch[name].shape[1] for name in ("first", "example") if name in batch), 1)
        # Texts are numbered as they stand; padding is behind all of them or, while texts are written, before the one.
        own_BL = jnp.arange(L)[None] + P * jax.lax.cummax(segment_BL, axis=1)
        is_BSL = segment_BL[:, None] == jnp.arange(1, S + 1)[None, :, None]
        begin_BS = jnp.take_along_axis(own_BL, is_BSL.argmax(-1), axis=1) - P
        # A slot without a text points behind the row, where nothing is set.
        place_BSP = jnp.where(is_BSL.any(-1), begin_BS, L + P * S)[:, :, None] + jnp.arange(P)[None, None]
        row_B1 = jnp.arange(B)[:, None]

        def longer(own: Any, virtual: jax.Array) -> jax.Array:
            at_BV, virtual_BSP = place_BSP.reshape(B, -1), jnp.broadcast_to(virtual, place_BSP.shape)
            row_BN = jnp.zeros((B, L + P * S), own.dtype).at[row_B1, own_BL].set(own)
            return row_BN.at[row_B1, at_BV].set(virtual_BSP.reshape(B, -1).astype(own.dtype), mode="drop")

        token_P, slot_S = jnp.arange(P)[None, None], jnp.arange(1, S + 1)[None, :, None]
        virtual = {"ids": -1 - token_P, "segment": slot_S, "position": token_P, "type": jnp.zeros((1, 1, 1))}
        moved = {name: longer(batch[name], value) for name, value in virtual.items() if name in batch}
        if "first" in batch:
            moved["first"] = jnp.take_along_axis(own_BL, batch["first"], axis=1) - P
        if "at" in batch:
            moved["at"] = jnp.take_along_axis(own_BL, batch["at"], axis=1)
        return {**batch, **moved}, own_BL
