"""Scores of independent yes/no labels, from one 2x2 matrix a class: counts [C, 2, 2], truth x prediction."""

from typing import Any

import numpy as np


def micro_f1(counts_C22: np.ndarray) -> float:
    """F1 of all decisions together."""
    return float(_scores(counts_C22.sum(0, keepdims=True))[2][0])


def macro_f1(counts_C22: np.ndarray) -> float:
    """Mean F1 of the classes, 0 for one that neither occurs nor is predicted."""
    return averages(counts_C22, "macro")["f1"]


def averages(counts_C22: np.ndarray, average: str) -> dict[str, float]:
    """Precision, recall and F1 averaged over classes ("micro", "macro" or "weighted"), and support."""
    support_C = counts_C22[:, 1].sum(-1)
    if average == "micro":
        precision, recall, f1 = (score[0] for score in _scores(counts_C22.sum(0, keepdims=True)))
    else:
        even = average == "macro" or not support_C.sum()
        weights_C = np.ones(len(support_C)) if even else support_C
        precision, recall, f1 = (np.average(score_C, weights=weights_C) for score_C in _scores(counts_C22))
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support_C.sum())}


def per_class(counts_C22: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """[{label, precision, recall, f1, support}], in class order."""
    columns = zip(classes, *_scores(counts_C22), counts_C22[:, 1].sum(-1), strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in columns
    ]


def _scores(counts_C22: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [C]; a quotient of nothing is 0."""
    hits_C, missed_C, false_C = counts_C22[:, 1, 1], counts_C22[:, 1, 0], counts_C22[:, 0, 1]

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)

    return (
        share(hits_C, hits_C + false_C),
        share(hits_C, hits_C + missed_C),
        share(2 * hits_C, 2 * hits_C + missed_C + false_C),
    )
