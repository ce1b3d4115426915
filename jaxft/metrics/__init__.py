"""Metrics on the host: numpy in, floats out. What is accumulated (counts, sums) adds; division comes last.

A metric is a function of the counts or arrays that the meters (meters.py) collect: a confusion matrix [C, C], one 2x2
matrix a class [C, 2, 2], predictions and targets [X], calibration bins, or texts and references.
"""

METRICS = {
    "accuracy": "jaxft.metrics.confusion:accuracy",
    "balanced_accuracy": "jaxft.metrics.confusion:balanced_accuracy",
    "f1": "jaxft.metrics.confusion:f1",
    "macro_f1": "jaxft.metrics.confusion:macro_f1",
    "weighted_f1": "jaxft.metrics.confusion:weighted_f1",
    "mcc": "jaxft.metrics.confusion:mcc",
    "ece": "jaxft.metrics.calibration:expected_calibration_error",
    "micro_f1": "jaxft.metrics.multilabel:micro_f1",
    "pearson": "jaxft.metrics.regression:pearson",
    "spearman": "jaxft.metrics.regression:spearman",
    "mae": "jaxft.metrics.regression:mean_absolute_error",
    "mse": "jaxft.metrics.regression:mean_squared_error",
    "exact_match": "jaxft.metrics.squad:exact_match",
    "mrr_10": "jaxft.metrics.retrieval:mrr_10",
    "recall_1": "jaxft.metrics.retrieval:recall_1",
    "recall_10": "jaxft.metrics.retrieval:recall_10",
    "ndcg_10": "jaxft.metrics.retrieval:ndcg_10",
    "perplexity": "jaxft.metrics.language:perplexity",
    "bleu": "jaxft.metrics.texts:bleu",
    "chrf": "jaxft.metrics.texts:chrf",
    "rouge1": "jaxft.metrics.texts:rouge1",
    "rouge2": "jaxft.metrics.texts:rouge2",
    "rougeL": "jaxft.metrics.texts:rouge_l",
    "bits_per_byte": "jaxft.metrics.language:bits_per_byte",
}

LOWER_IS_BETTER = frozenset({"loss", "ece", "mae", "mse", "perplexity", "bits_per_byte"})


def better(metric: str, new: float, old: float) -> bool:
    """Whether `new` improves on `old`; never for NaN, always over NaN."""
    if new != new or old != old:
        return new == new
    return new < old if metric in LOWER_IS_BETTER else new > old
