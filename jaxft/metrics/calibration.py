"""Whether probabilities can be believed: does what is said with 80 % come true in 80 % of the cases?"""

import numpy as np

BINS = 15  # as in Guo et al. 2017


def calibration_bins(probabilities_XC: np.ndarray, labels_X: np.ndarray) -> np.ndarray:
    """Sums by confidence of the predicted class, float64 [BINS, 3]: examples, confidence, correct ones. They add up."""
    confidence_X = probabilities_XC.max(-1).astype(np.float64)
    correct_X = (probabilities_XC.argmax(-1) == labels_X).astype(np.float64)
    # Bins are (low, high], so that a confidence of 1 falls into the last one.
    # That of a model that has diverged is NaN: it goes into the first bin and makes the result NaN.
    bin_X = np.clip(np.ceil(np.nan_to_num(confidence_X) * BINS) - 1, 0, BINS - 1).astype(np.int64)
    columns = (np.ones_like(confidence_X), confidence_X, correct_X)
    return np.stack([np.bincount(bin_X, weights, BINS) for weights in columns], axis=-1)


def expected_calibration_error(bins_3: np.ndarray) -> float:
    """Mean over examples of |confidence - accuracy| of their bin (Guo et al. 2017, eq. 3); 0 is best."""
    total, confidence, correct = bins_3[:, 0].sum(), bins_3[:, 1], bins_3[:, 2]
    if not total:
        raise ValueError("no scores of nothing: no example was added")
    return float(np.abs(confidence - correct).sum() / total)
