"""What tasks share that choose one of C classes, whatever they read, of whole inputs or of each word."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.loss import softmax_cross_entropy
from jaxft.metrics.meters import ClassMeter, softmax
from jaxft.registry import UserError
from jaxft.tasks import labels
from jaxft.tasks.text import Row, Splits, cell, find_classes
from jaxft.tasks.whole import Whole


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Options and loss of a task that chooses one of C classes, of an input or of each word.

    smoothing: share of the target spread over all classes. classes: () = those of the train split, in order.
    """

    label: str
    metric: str
    smoothing: float
    classes: tuple[str, ...] = ()

    def check_options(self) -> None:
        """Raises UserError for options that exclude each other; makes all classes text."""
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        labels.check_distinct(self.classes, "task.classes")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"task.smoothing={self.smoothing} must be at least 0 and below 1; 0.1 is common")

    @functools.cached_property
    def _names(self) -> labels.Names:
        return labels.Names(self.classes)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def loss(self, logits_C: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy, and accuracy for the training display."""
        truth, weights = batch["label"], batch["weight"]
        loss, weight = softmax_cross_entropy(logits_C, truth, weights, self.smoothing)
        hits = (jnp.argmax(logits_C, axis=-1) == truth) * weights.astype(jnp.float32)
        return {"loss": (loss, weight), "accuracy": (hits.sum(), weight)}


@dataclass(frozen=True, kw_only=True)
class OneClass(Classes, Whole):
    """Further options and scores of a task over whole inputs; the task itself says how a row is read.

    Labels may be text, whole numbers or bools; those of the source's named classes may be indices.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "weighted_f1",
        "f1",
        "mcc",
        "ece",
        "loss",
    )

    def check_options(self) -> None:
        super().check_options()
        if self.classes and self.metric == "f1" and len(self.classes) != 2:
            raise UserError(f"task.metric='f1' needs two classes, and there are {len(self.classes)}; take macro_f1")

    def with_classes(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """This task with its classes: those of the config, else of the source, else of the train split.

        Raises UserError for fewer than two classes, and for a label that an evaluation split has and the train split
        has not.
        """
        names = labels.Names(self.classes or label_names.get(self.label, ()))

        def read(row: Row) -> list[str]:
            return [names.name(cell(row, self.label))]

        classes, seen = find_classes(splits, names, read)
        if seen < 2:
            raise UserError(f"task.label={self.label!r}: the train split has a single class; two are the least")
        return dataclasses.replace(self, classes=classes)

    def meter(self) -> ClassMeter:
        return ClassMeter(self.classes)

    def predictions(self, logits: np.ndarray, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """logits [n, C] -> [{label, probabilities: {class: p}}]."""
        return [
            {
                "label": self.classes[int(np.argmax(p_C))],
                "probabilities": dict(zip(self.classes, p_C.tolist(), strict=True)),
            }
            for p_C in softmax(logits)
        ]

    def hf_config(self) -> dict[str, Any]:
        return labels.to_hf(self.classes, "single_label_classification")
