"""Similarity: how much two texts mean the same, as the cosine of their vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from jaxft.layers.loss import squared_error
from jaxft.metrics.meters import RegressionMeter
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example
from jaxft.tasks.labels import number
from jaxft.tasks.text import Row, cell
from jaxft.tasks.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class Similarity(Vectors):
    """label: the column of scores from 0 to `most`; the cosine learns score / most (Reimers & Gurevych 2019, 3)."""

    label: str
    most: float

    blank: ClassVar[object] = 0.0
    compared: ClassVar[int] = 2
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "mse", "loss")
    columns: ClassVar[dict[str, str]] = {"text": "text", "pair": "pair", "label": "label"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.most > 0:
            raise UserError(f"task.most={self.most} must be above 0: the highest score")

    def further_columns(self) -> list[tuple[str, str]]:
        return [("label", self.label)]

    def example(self, row: Row, labelled: bool = True) -> list[Example]:
        """The two texts, with the share of the highest score. Raises BadRow for one that is not from 0 to `most`."""
        score = 0.0
        if labelled:
            score = number(cell(row, self.label))
            if not 0 <= score <= self.most:
                raise BadRow(f"label is {score:g}; it must be from 0 to task.most={self.most:g}")
        return [Example(text, None, score / self.most) for text in self.texts(row, labelled)]

    def _cosines(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """([B, S], whether there is one) of the text in a slot and that in the slot before."""
        x_BSD = self.readout(vectors_BLD, batch)
        cosine_BS = jnp.pad((x_BSD[:, 1:] * x_BSD[:, :-1]).sum(-1), ((0, 0), (1, 0)))
        return cosine_BS, (batch["part"] == 1) & (batch["example"] >= 0)

    def loss(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: squared error of the cosine."""
        cosine_BS, there_BS = self._cosines(vectors_BLD, batch)
        return {"loss": squared_error(cosine_BS, batch["label"], there_BS.astype(jnp.float32))}

    def seen(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        cosine_BS, there_BS = self._cosines(vectors_BLD, batch)
        example_BS = jnp.where(there_BS, batch["example"], -1)
        return {"logits": cosine_BS[..., None], "label": batch["label"], "example": example_BS}

    def meter(self) -> RegressionMeter:
        return RegressionMeter()

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, text: str, pair: str, label: str, pooling: str, most: float = 1.0
    ) -> Self:
        return cls(text=text, pair=pair, label=label, pooling=pooling, most=most, metric="")
