"""Meters: batches of logits and labels in, a result, a report and a table out.

All have update(sums of the task's loss, what the task let the host see), result() -> scores by name (the curves and the
choice of the best checkpoint), report() -> everything, JSON-able, and table() -> text for the terminal.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.metrics import calibration, confusion, multilabel, regression, table


class Meter(abc.ABC):
    """The loss, which all tasks have."""

    def __init__(self) -> None:
        self.loss_sum, self.weight, self.examples = 0.0, 0.0, 0
        self.told: Sequence[Any] = ()

    def tell(self, examples: Sequence[Any]) -> None:
        """Whose batches come next: for meters that need more than these hold."""
        self.told = examples

    @abc.abstractmethod
    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: the sums of the task's loss, and what the task let the host see."""

    def add_loss(self, loss_sum: float, weight: float, examples: int) -> None:
        self.loss_sum += float(loss_sum)
        self.weight += float(weight)
        self.examples += examples

    @property
    def loss(self) -> float:
        """Mean loss; 0 when nothing counted."""
        return self.loss_sum / self.weight if self.weight else 0.0


class ShareMeter(Meter):
    """Of tasks whose loss says all: means of its sums, called `metrics`; an example counts once.

    unit: what the report calls the examples, such as "questions".
    """

    def __init__(self, metrics: tuple[str, ...], unit: str):
        super().__init__()
        self.unit = unit
        self.sums = {name: np.zeros(2) for name in metrics if name != "loss"}

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        loss_sum, weight = (float(x) for x in sums["loss"])
        self.add_loss(loss_sum, weight, round(weight))
        for name, pair in self.sums.items():
            pair += [float(x) for x in sums[name]]

    def result(self) -> dict[str, float]:
        if not self.weight:
            raise ValueError("no scores of nothing: no example was added")
        return {"loss": self.loss} | {name: float(total / weight) for name, (total, weight) in self.sums.items()}

    def report(self) -> dict[str, Any]:
        return {self.unit: self.examples, **self.result()}

    def table(self) -> str:
        return table.scores(self.report())


class WholeMeter(Meter):
    """Of tasks that judge whole inputs."""

    @abc.abstractmethod
    def add(self, logits: np.ndarray, labels: np.ndarray, loss_sum: float, weight: float) -> None:
        """Adds n inputs: logits [n, C], labels [n] or [n, C]."""

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        """Of the slots [B, S] those that hold an example."""
        real_BS = seen["example"] >= 0
        loss_sum, weight = (float(x) for x in sums["loss"])
        self.add(seen["logits"][real_BS], seen["label"][real_BS], loss_sum, weight)


class ClassMeter(WholeMeter):
    """One of C classes: keeps the confusion matrix and calibration bins."""

    def __init__(self, classes: tuple[str, ...]):
        super().__init__()
        self.classes = classes
        self.counts_CC = np.zeros((len(classes), len(classes)), np.int64)
        self.bins_3 = np.zeros((calibration.BINS, 3))

    def add(self, logits: np.ndarray, labels: np.ndarray, loss_sum: float, weight: float) -> None:
        """logits [n, C], labels int [n]. Raises ValueError for a label outside [0, C)."""
        n, size = len(labels), len(self.classes)
        if n and not (labels.min() >= 0 and labels.max() < size):
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, but there are {size} classes")
        cells = labels.astype(np.int64) * size + logits.argmax(-1)
        self.counts_CC += np.bincount(cells, minlength=size * size).reshape(size, size)
        self.bins_3 += calibration.calibration_bins(softmax(logits), labels)
        self.add_loss(loss_sum, weight, n)

    def result(self) -> dict[str, float]:
        counts_CC = self.counts_CC
        scores = {
            "loss": self.loss,
            "accuracy": confusion.accuracy(counts_CC),
            "balanced_accuracy": confusion.balanced_accuracy(counts_CC),
            "macro_f1": confusion.macro_f1(counts_CC),
            "weighted_f1": confusion.weighted_f1(counts_CC),
            "mcc": confusion.mcc(counts_CC),
            "ece": calibration.expected_calibration_error(self.bins_3),
        }
        return scores | ({"f1": confusion.f1(counts_CC)} if len(self.classes) == 2 else {})

    def report(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            **self.result(),
            "macro": confusion.averages(self.counts_CC, "macro"),
            "weighted": confusion.averages(self.counts_CC, "weighted"),
            "classes": confusion.per_class(self.counts_CC, self.classes),
            "confusion": self.counts_CC.tolist(),
        }

    def table(self) -> str:
        scores = table.classification(self.report(), ("macro", "weighted"), ("accuracy", "mcc"))
        return f"{scores}\n\n{table.confusion(self.counts_CC, self.classes)}"


class MultilabelMeter(WholeMeter):
    """Any of C labels: keeps one 2x2 matrix a class and counts examples with every label right."""

    def __init__(self, classes: tuple[str, ...], threshold: float):
        super().__init__()
        self.classes, self.threshold = classes, threshold
        self.counts_C22 = np.zeros((len(classes), 2, 2), np.int64)
        self.exact = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, loss_sum: float, weight: float) -> None:
        """logits [n, C], labels [n, C] of 0 and 1."""
        predicted_XC, truth_XC = sigmoid(logits) > self.threshold, labels > 0.5
        for truth in (0, 1):
            for predicted in (0, 1):
                cell_XC = (truth_XC == bool(truth)) & (predicted_XC == bool(predicted))
                self.counts_C22[:, truth, predicted] += cell_XC.sum(0)
        self.exact += int((predicted_XC == truth_XC).all(-1).sum())
        self.add_loss(loss_sum, weight, len(labels))

    def result(self) -> dict[str, float]:
        """`accuracy` is the share of examples with every label right."""
        if not self.examples:
            raise ValueError("no scores of nothing: no example was added")
        return {
            "loss": self.loss,
            "accuracy": self.exact / self.examples,
            "micro_f1": multilabel.micro_f1(self.counts_C22),
            "macro_f1": multilabel.macro_f1(self.counts_C22),
            "weighted_f1": multilabel.averages(self.counts_C22, "weighted")["f1"],
        }

    def report(self) -> dict[str, Any]:
        averages = {name: multilabel.averages(self.counts_C22, name) for name in ("micro", "macro", "weighted")}
        classes = multilabel.per_class(self.counts_C22, self.classes)
        return {"examples": self.examples, **self.result(), **averages, "classes": classes}

    def table(self) -> str:
        return table.classification(self.report(), ("micro", "macro", "weighted"), ("accuracy",))


class RegressionMeter(WholeMeter):
    """A number: keeps predictions and targets, since ranks do not add up (8 bytes an example)."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def add(self, logits: np.ndarray, labels: np.ndarray, loss_sum: float, weight: float) -> None:
        """logits [n, 1], labels [n]."""
        self.predictions.append(np.asarray(logits[:, 0], np.float32))
        self.targets.append(np.asarray(labels, np.float32))
        self.add_loss(loss_sum, weight, len(labels))

    def result(self) -> dict[str, float]:
        if not self.examples:
            raise ValueError("no scores of nothing: no example was added")
        predictions_X = np.concatenate(self.predictions).astype(np.float64)
        targets_X = np.concatenate(self.targets).astype(np.float64)
        return {
            "loss": self.loss,
            "pearson": regression.pearson(predictions_X, targets_X),
            "spearman": regression.spearman(predictions_X, targets_X),
            "mae": regression.mean_absolute_error(predictions_X, targets_X),
            "mse": regression.mean_squared_error(predictions_X, targets_X),
        }

    def report(self) -> dict[str, Any]:
        return {"examples": self.examples, **self.result()}

    def table(self) -> str:
        return table.scores(self.report())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float32."""
    with np.errstate(invalid="ignore"):  # inf - inf: NaN, and no more to say about a model that has diverged
        exp = np.exp(logits.astype(np.float32) - logits.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float32, without overflow for large negative logits."""
    exp = np.exp(-np.abs(logits.astype(np.float32)))
    return np.where(logits >= 0, 1, exp) / (1 + exp)
