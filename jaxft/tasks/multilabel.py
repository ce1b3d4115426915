"""Multi-label classification: any number of C labels for a text or a pair of texts."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.loss import sigmoid_binary_cross_entropy
from jaxft.metrics.meters import MultilabelMeter, sigmoid
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example, labels
from jaxft.tasks.text import Row, Splits, TextTask, cell, find_classes, labels_in


@dataclass(frozen=True, kw_only=True)
class Multilabel(TextTask):
    """label: one column with a list of labels (or text that `separator` parts), or several 0/1 columns, "toxic,insult".

    threshold: probability above which a label is predicted. smoothing: how far targets move towards 1/2.
    classes: () = those of the train split, in order, or the columns.
    """

    separator: str  # "" = the column holds lists
    threshold: float
    smoothing: float
    classes: tuple[str, ...] = ()

    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "weighted_f1", "accuracy", "loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        labels.check_distinct(self.classes, "task.classes")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"task.smoothing={self.smoothing} must be at least 0 and below 1")
        if not 0 < self.threshold < 1:
            raise UserError(f"task.threshold={self.threshold} is a probability: above 0 and below 1; 0.5 is common")
        labels.check_distinct(self.label_columns, "task.label")

    @property
    def blank(self) -> list[float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return [0.0] * len(self.classes)

    @property
    def label_columns(self) -> tuple[str, ...]:
        return tuple(column.strip() for column in self.label.split(","))

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """This task with its classes: those of the config, the columns, those of the source, or of the train split.

        Raises UserError for a missing column, an empty split, no label at all, and a label that an evaluation split has
        and the train split has not.
        """
        self.check_columns(splits)
        if len(self.label_columns) > 1:
            if self.classes and self.classes != self.label_columns:
                raise UserError(
                    f"task.classes={self.classes} differ from the columns of task.label={self.label!r}; leave one"
                )
            for name, split in splits.items():
                labels_in(name, split, self._marked)
            return dataclasses.replace(self, classes=self.label_columns)
        names = labels.Names(self.classes or label_names.get(self.label, ()))

        def read(row: Row) -> list[str]:
            return [names.name(value) for value in self._values(row)]

        classes, seen = find_classes(splits, names, read)
        if not seen:
            raise UserError(f"task.label={self.label!r}: no row of the train split has a label")
        return dataclasses.replace(self, classes=classes)

    def _values(self, row: Row) -> list[Any]:
        """What the label column lists."""
        value = cell(row, self.label)
        if value is None:
            raise BadRow("label is empty; a row without labels has an empty list or text")
        if self.separator:
            if not isinstance(value, str):
                raise BadRow(f"label is a {type(value).__name__}, not text parted by {self.separator!r}")
            return [part.strip() for part in value.split(self.separator) if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise BadRow(f"label is a {type(value).__name__}, not a list; task.separator parts text into labels")
        return list(value)

    def _marked(self, row: Row) -> list[str]:
        """The columns that hold a 1."""
        marked = []
        for column in self.label_columns:
            value = cell(row, column)
            if value in (1, "1"):  # True equals 1, and 1.0 does
                marked.append(column)
            elif value not in (0, "0"):
                raise BadRow(f"label {column!r} is {value!r}, neither 0 nor 1")
        return marked

    @functools.cached_property
    def _names(self) -> labels.Names:
        return labels.Names(self.classes)

    def example(self, row: Row, labelled: bool = True) -> Example:
        """`label` is a list of C zeros and ones. Raises BadRow for a text or label that cannot be used."""
        text, pair = self.texts(row)
        if not labelled:
            return Example(text, pair, None)
        present = self._marked(row) if len(self.label_columns) > 1 else self._values(row)
        ids = {self._names.id(value) for value in present}
        return Example(text, pair, [float(i in ids) for i in range(self.outputs)])

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def loss(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: mean binary cross-entropy, and the share of examples with every label right."""
        labels_BSC, weights_BS = batch["label"], batch["weight"].astype(jnp.float32)
        loss, weight = sigmoid_binary_cross_entropy(logits_BSC, labels_BSC, weights_BS, self.smoothing)
        predicted_BSC = logits_BSC > math.log(self.threshold / (1 - self.threshold))
        right_BS = (predicted_BSC == (labels_BSC > 0.5)).all(-1)
        return {"loss": (loss, weight), "accuracy": ((right_BS * weights_BS).sum(), weight)}

    def meter(self) -> MultilabelMeter:
        return MultilabelMeter(self.classes, self.threshold)

    def predictions(self, logits: np.ndarray, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """logits [n, C] -> [{labels, probabilities: {class: p}}]."""
        return [
            {
                "labels": [self.classes[i] for i in np.flatnonzero(p_C > self.threshold)],
                "probabilities": dict(zip(self.classes, p_C.tolist(), strict=True)),
            }
            for p_C in sigmoid(logits)
        ]

    def hf_config(self) -> dict[str, Any]:
        own = {"task_specific_params": {"multilabel": {"threshold": self.threshold}}}
        return labels.to_hf(self.classes, "multi_label_classification") | own

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        text: str,
        pair: str,
        label: str,
        separator: str = "",
        threshold: float = 0.5,
        smoothing: float = 0.0,
    ) -> Self:
        return cls(
            text=text,
            pair=pair,
            label=label,
            metric="",
            separator=separator,
            threshold=threshold,
            smoothing=smoothing,
            classes=labels.from_hf(config),
        )
