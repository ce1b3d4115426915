"""Scores of predicted numbers [X] against targets [X]."""

import numpy as np


def pearson(predictions_X: np.ndarray, targets_X: np.ndarray) -> float:
    """Linear correlation; 0 where one side is constant, since it then orders nothing (scipy: NaN)."""
    from scipy.stats import pearsonr

    if (known := _degenerate(predictions_X, targets_X)) is not None:
        return known
    return float(pearsonr(predictions_X, targets_X)[0])  # pyright: ignore[reportArgumentType]


def spearman(predictions_X: np.ndarray, targets_X: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if (known := _degenerate(predictions_X, targets_X)) is not None:
        return known
    return float(spearmanr(predictions_X, targets_X)[0])  # pyright: ignore[reportArgumentType]


def mean_absolute_error(predictions_X: np.ndarray, targets_X: np.ndarray) -> float:
    return float(np.abs(predictions_X - targets_X).mean())


def mean_squared_error(predictions_X: np.ndarray, targets_X: np.ndarray) -> float:
    return float(np.square(predictions_X - targets_X).mean())


def _degenerate(predictions_X: np.ndarray, targets_X: np.ndarray) -> float | None:
    """The correlation where scipy has none to give: NaN of a model that has diverged, 0 of a constant side."""
    if not len(targets_X):
        raise ValueError("no scores of nothing: no example was added")
    if not np.isfinite(predictions_X).all():
        return float("nan")
    constant = any((values_X == values_X[0]).all() for values_X in (predictions_X, targets_X))
    return 0.0 if constant else None
