"""What tasks share that say one thing of each whole input: a text, a pair, an image."""

from collections.abc import Mapping
from typing import ClassVar

import jax


class Whole:
    blank: ClassVar[object] = 0  # a label like those of the data (data/blanks.py)
    read: ClassVar[float] = 0.0  # share of a row's tokens whose vectors the head is given: a few, not worth counting
    head: ClassVar[str] = "sequence"  # one logit vector per segment of a packed row

    def readout(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What predictions are made of."""
        return logits_BSC

    def seen(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array], /) -> dict[str, jax.Array]:
        """What the host is given to score: logits and labels of every slot, and which hold an example (not -1)."""
        return {"logits": logits_BSC, "label": batch["label"], "example": batch["example"]}
