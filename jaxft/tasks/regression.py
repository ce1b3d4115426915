"""Regression: a number for a text or a pair of texts, such as the similarity scores of STS-B."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.loss import squared_error
from jaxft.metrics.meters import RegressionMeter
from jaxft.registry import UserError
from jaxft.tasks import Example, labels
from jaxft.tasks.text import Row, Splits, TextTask, cell, labels_in


@dataclass(frozen=True, kw_only=True)
class Regression(TextTask):
    """The label column holds numbers. They are learned as they are: the exported model predicts in their unit."""

    blank: ClassVar[object] = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "mae", "mse", "loss")

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """This task, which has no classes to learn.

        Raises UserError for a missing column, an empty split and one without numbers.
        """
        if self.label in label_names:
            named = ", ".join(label_names[self.label][:5])
            raise UserError(f"task.label={self.label!r} holds classes ({named}, ...), not numbers; set task.name='cls'")
        self.check_columns(splits)
        for name, split in splits.items():
            labels_in(name, split, self._no_names)
        return self

    def _no_names(self, row: Row) -> list[str]:
        self._number(row)
        return []

    def _number(self, row: Row) -> float:
        return labels.number(cell(row, self.label))

    def example(self, row: Row, labelled: bool = True) -> Example:
        """Raises BadRow for a text or label that cannot be used."""
        text, pair = self.texts(row)
        return Example(text, pair, self._number(row) if labelled else None)

    @property
    def outputs(self) -> int:
        return 1

    def loss(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: squared error, and absolute error for the training display."""
        predictions_BS, labels_BS, weights_BS = logits_BSC[..., 0].astype(jnp.float32), batch["label"], batch["weight"]
        loss, weight = squared_error(predictions_BS, labels_BS, weights_BS)
        error_BS = jnp.where(weights_BS > 0, jnp.abs(predictions_BS - labels_BS), 0)
        return {"loss": (loss, weight), "mae": ((error_BS * weights_BS).sum(), weight)}

    def meter(self) -> RegressionMeter:
        return RegressionMeter()

    def predictions(self, logits: np.ndarray, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """logits [n, 1] -> [{score}]."""
        return [{"score": score} for score in logits[:, 0].tolist()]

    def hf_config(self) -> dict[str, Any]:
        return labels.to_hf(("LABEL_0",), "regression")  # transformers' name for the only output

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, text: str, pair: str, label: str) -> Self:
        """Raises UserError for a model that predicts several numbers."""
        if (n := len(labels.from_hf(config))) != 1:
            raise UserError(f"config.json: a regression with {n} outputs is not supported; jaxft predicts one number")
        return cls(text=text, pair=pair, label=label, metric="")
