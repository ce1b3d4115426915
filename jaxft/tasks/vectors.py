"""What tasks share that give a text a vector: how the vectors of its tokens become one, and what is predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.head import segment_mean, tokens_of_segments
from jaxft.registry import UserError
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, Splits, cell, require_columns, settle_metric, text_of

POOLINGS = ("mean", "first", "last")
SHORTEST = 1e-12  # a vector is divided by its length, but by no less (torch.nn.functional.normalize)


@dataclass(frozen=True, kw_only=True)
class Vectors(Classless):
    """text, pair: columns of two texts that are compared. metric: the score that picks the best checkpoint.

    pooling: what the vector of a text is: the mean of its tokens' vectors, or that of the first ([CLS]) or last one.
    Vectors have length 1, so that the product of two is the cosine of their angle (Reimers & Gurevych 2019).
    """

    text: str
    pair: str
    pooling: str
    metric: str  # "" = the task's own

    reads: ClassVar[str] = "vectors"
    head: ClassVar[str] = "vectors"
    read: ClassVar[float] = 1.0  # share of a row's tokens whose vectors the head is given
    outputs: ClassVar[int] = 0
    metrics: ClassVar[tuple[str, ...]]
    columns: ClassVar[dict[str, str]]

    def __post_init__(self) -> None:
        settle_metric(self)
        for option in ("text", "pair"):
            if not getattr(self, option):
                raise UserError(f"task.{option}='' must name a column of texts")
        if self.pooling not in POOLINGS:
            raise UserError(f"task.pooling={self.pooling!r} is not known; known: {', '.join(POOLINGS)}")

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns. Who only wants vectors needs no second text."""
        wanted = [("text", self.text)] + [("pair", self.pair)] * labelled + self.further_columns() * labelled
        require_columns(splits, wanted, option)

    def further_columns(self) -> list[tuple[str, str]]:
        """(option, column) of what a labelled row must have, too."""
        return []

    def texts(self, row: Row, labelled: bool) -> list[str]:
        """The texts that are compared; without a second one, and not labelled, the first alone. Raises BadRow."""
        columns = [self.text, self.pair] if labelled or self.pair in row else [self.text]
        return [text_of(cell(row, column), repr(column)) for column in columns]

    def readout(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The vector of each text, of length 1: float32 [B, S, D]."""
        if self.pooling == "mean":
            x_BSD = segment_mean(vectors_BLD, batch)
        else:
            at_BS = batch["first"]
            if self.pooling == "last":
                at_BS = at_BS + jnp.maximum(tokens_of_segments(batch).sum(-1), 1) - 1
            x_BSD = jnp.take_along_axis(vectors_BLD, at_BS[..., None], axis=1)
        x_BSD = jnp.where((batch["example"] >= 0)[..., None], x_BSD, 1.0)  # a length that has a gradient
        return x_BSD / jnp.maximum(jnp.linalg.norm(x_BSD, axis=-1, keepdims=True), SHORTEST)

    def predictions(self, logits: Sequence[np.ndarray], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Vectors [texts, D] of each row -> [{similarity}] of two texts, [{vector}] of one."""
        return [
            {"similarity": float(x_SD[0] @ x_SD[1])} if len(x_SD) == 2 else {"vector": x_SD[0].tolist()}
            for x_SD in logits
        ]
