"""Scores of a confusion matrix: int64 counts [C, C], rows the true class, columns the predicted one.

scikit-learn computes them, from one sample a cell with the count as its weight: cost and memory do not grow with the
number of examples.
"""

from typing import Any

import numpy as np


def _samples(counts_CC: np.ndarray) -> dict[str, Any]:
    truth, predicted = np.nonzero(counts_CC)
    if not len(truth):
        raise ValueError("an empty confusion matrix has no scores: no example was added")
    return {"y_true": truth, "y_pred": predicted, "sample_weight": counts_CC[truth, predicted]}


def accuracy(counts_CC: np.ndarray) -> float:
    """Share of examples whose class was predicted."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(**_samples(counts_CC)))


def balanced_accuracy(counts_CC: np.ndarray) -> float:
    """Mean recall of the classes that occur."""
    recall_C, support_C = _per_class(counts_CC)[1], counts_CC.sum(1)
    return float(recall_C[support_C > 0].mean())


def f1(counts_CC: np.ndarray) -> float:
    """F1 of class 1 of two, as GLUE scores MRPC and QQP."""
    if len(counts_CC) != 2:
        raise ValueError(f"f1 is the F1 of class 1 of two; of {len(counts_CC)} classes take macro_f1 or weighted_f1")
    return float(_per_class(counts_CC)[2][1])


def macro_f1(counts_CC: np.ndarray) -> float:
    """Mean F1 of all classes, 0 for one that neither occurs nor is predicted."""
    return averages(counts_CC, "macro")["f1"]


def weighted_f1(counts_CC: np.ndarray) -> float:
    """Mean F1 weighted by how often a class occurs."""
    return averages(counts_CC, "weighted")["f1"]


def mcc(counts_CC: np.ndarray) -> float:
    """Matthews correlation: 1 perfect, 0 no better than chance (or a single class), -1 opposite."""
    from sklearn.metrics import matthews_corrcoef

    if np.count_nonzero(counts_CC) == 1:  # scikit-learn warns of a 1x1 matrix
        return 0.0
    return float(matthews_corrcoef(**_samples(counts_CC)))


def averages(counts_CC: np.ndarray, average: str) -> dict[str, float]:
    """Precision, recall and F1 averaged over classes ("macro" or "weighted"), and support."""
    precision, recall, f1_score, _ = _per_class(counts_CC, average)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1_score),
        "support": int(counts_CC.sum()),
    }


def per_class(counts_CC: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """[{label, precision, recall, f1, support}], in class order."""
    columns = zip(classes, *_per_class(counts_CC), strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in columns
    ]


def _per_class(counts_CC: np.ndarray, average: Any = None) -> Any:
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.arange(len(counts_CC))
    return precision_recall_fscore_support(**_samples(counts_CC), labels=labels, average=average, zero_division=0.0)  # pyright: ignore[reportArgumentType] (scikit-learn types it as str)
