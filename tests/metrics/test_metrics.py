"""Metrics from accumulated counts against scikit-learn and scipy on the raw predictions."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from jaxft.metrics import METRICS, better, calibration, confusion, multilabel, regression
from jaxft.metrics.meters import ClassMeter, MultilabelMeter, RegressionMeter, sigmoid, softmax
from jaxft.registry import lookup

rng = np.random.default_rng(0)
CLASSES = ("a", "b", "c", "d", "never")


def classified(n=500, classes=5):
    """Logits that are right more often than not; the last class neither occurs nor is predicted."""
    labels_X = rng.integers(0, classes - 1, n)
    logits_XC = rng.normal(size=(n, classes)).astype(np.float32)
    logits_XC[np.arange(n), labels_X] += 1
    logits_XC[:, -1] = -9
    return logits_XC, labels_X


def fed(meter, logits_XC, labels_X, pieces=7):
    """The meter after uneven batches, with a loss of 2 an example."""
    for logits, labels in zip(np.array_split(logits_XC, pieces), np.array_split(labels_X, pieces), strict=True):
        meter.add(logits, labels, 2.0 * len(labels), float(len(labels)))
    return meter


def test_class_meter_equals_scikit_learn_on_raw_predictions():
    logits_XC, truth = classified()
    result, predicted = fed(ClassMeter(CLASSES), logits_XC, truth).result(), logits_XC.argmax(-1)
    every = {"labels": range(5), "zero_division": 0}
    expected = {
        "loss": 2.0,
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "macro_f1": sk.f1_score(truth, predicted, average="macro", **every),
        "weighted_f1": sk.f1_score(truth, predicted, average="weighted", **every),
        "mcc": sk.matthews_corrcoef(truth, predicted),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(result) == {*expected, "ece"}


def test_class_report_equals_scikit_learn():
    logits_XC, truth = classified()
    report, predicted = fed(ClassMeter(CLASSES), logits_XC, truth).report(), logits_XC.argmax(-1)
    expected = sk.classification_report(
        truth, predicted, labels=range(5), target_names=CLASSES, output_dict=True, zero_division=0
    )
    columns = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for ours, theirs in [*((row, row["label"]) for row in report["classes"]), (report["macro"], "macro avg")]:
        assert {key: ours[key] for key in columns} == pytest.approx(
            {k: expected[theirs][v] for k, v in columns.items()}
        )
    assert report["confusion"] == sk.confusion_matrix(truth, predicted, labels=range(5)).tolist()
    assert report["examples"] == 500


def test_f1_of_two_classes_is_that_of_the_second():
    logits_XC, truth = classified(classes=3)
    meter = fed(ClassMeter(("no", "yes")), logits_XC[:, :2], truth)
    assert meter.result()["f1"] == pytest.approx(sk.f1_score(truth, logits_XC[:, :2].argmax(-1)))
    with pytest.raises(ValueError, match="of 3 classes take macro_f1"):
        confusion.f1(np.eye(3, dtype=np.int64))


def test_a_single_class_gives_scores_without_warnings():
    meter = ClassMeter(("a", "b"))
    meter.add(np.array([[1.0, 0.0]], np.float32), np.array([0]), 0.1, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = meter.result()
    assert result["accuracy"] == 1 and result["mcc"] == 0


@pytest.mark.parametrize("label", [-1, 5, -100])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(ValueError, match="there are 5 classes"):
        ClassMeter(CLASSES).add(np.zeros((1, 5)), np.array([label]), 0.0, 1.0)


@pytest.mark.parametrize("meter", [ClassMeter(CLASSES), MultilabelMeter(CLASSES, 0.5), RegressionMeter()])
def test_a_meter_that_saw_nothing_says_so(meter):
    with pytest.raises(ValueError, match="no example was added"):
        meter.result()


def test_a_diverged_model_scores_nan_or_low_and_never_crashes():
    bad_XC = np.full((4, 5), np.nan, np.float32)
    bad_XC[0] = np.inf
    result = fed(ClassMeter(CLASSES), bad_XC, np.array([1, 2, 3, 1]), pieces=1).result()
    assert np.isnan(result["ece"]) and result["accuracy"] == 0
    result = fed(RegressionMeter(), bad_XC, np.arange(4.0), pieces=1).result()
    assert np.isnan(result["pearson"]) and np.isnan(result["spearman"])


def test_multilabel_meter_equals_scikit_learn():
    truth_XC = rng.integers(0, 2, (200, 5))
    truth_XC[:, 4] = 0
    logits_XC = (truth_XC * 2 - 1 + rng.normal(size=truth_XC.shape) * 1.5).astype(np.float32)
    logits_XC[:, 4] = -9
    meter = fed(MultilabelMeter(CLASSES, 0.6), logits_XC, truth_XC.astype(np.float32))
    predicted_XC = 1 / (1 + np.exp(-logits_XC.astype(np.float64))) > 0.6
    expected = {
        f"{average}_f1": sk.f1_score(truth_XC, predicted_XC, average=average, zero_division=0)
        for average in ("micro", "macro", "weighted")
    }
    expected |= {"loss": 2.0, "accuracy": sk.accuracy_score(truth_XC, predicted_XC)}
    assert meter.result() == pytest.approx(expected)
    np.testing.assert_array_equal(meter.counts_C22, sk.multilabel_confusion_matrix(truth_XC, predicted_XC))
    theirs = sk.classification_report(truth_XC, predicted_XC, target_names=CLASSES, output_dict=True, zero_division=0)
    for row in meter.report()["classes"]:
        assert row["precision"] == pytest.approx(theirs[row["label"]]["precision"])
        assert row["recall"] == pytest.approx(theirs[row["label"]]["recall"])
        assert row["support"] == theirs[row["label"]]["support"]


def test_regression_meter_equals_scipy_with_ties():
    targets_X = rng.integers(0, 6, 100).astype(np.float32)
    predictions_X1 = (targets_X + rng.normal(size=100))[:, None].astype(np.float32)
    result = fed(RegressionMeter(), predictions_X1, targets_X).result()
    expected = {
        "loss": 2.0,
        "pearson": scipy.stats.pearsonr(predictions_X1[:, 0], targets_X).statistic,
        "spearman": scipy.stats.spearmanr(predictions_X1[:, 0], targets_X).statistic,
        "mae": sk.mean_absolute_error(targets_X, predictions_X1[:, 0]),
        "mse": sk.mean_squared_error(targets_X, predictions_X1[:, 0]),
    }
    assert result == pytest.approx(expected, rel=1e-6)


def test_constant_predictions_have_no_correlation():
    assert regression.pearson(np.full(3, 2.0), np.arange(3.0)) == 0
    assert regression.spearman(np.arange(3.0), np.full(3, 2.0)) == 0


def test_calibration_bins_add_up_and_the_error_is_that_of_its_definition():
    logits_XC, labels_X = classified(n=2000)
    meter, probabilities_XC = fed(ClassMeter(CLASSES), logits_XC, labels_X), softmax(logits_XC)
    confidence_X, right_X = probabilities_XC.max(-1), probabilities_XC.argmax(-1) == labels_X
    edges, error = np.linspace(0, 1, calibration.BINS + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence_X > low) & (confidence_X <= high)
        if inside.any():
            error += inside.mean() * abs(confidence_X[inside].mean() - right_X[inside].mean())
    assert meter.result()["ece"] == pytest.approx(error, rel=1e-4)


def test_certain_and_right_is_perfectly_calibrated():
    bins_3 = calibration.calibration_bins(np.eye(3), np.arange(3))
    assert calibration.expected_calibration_error(bins_3) == 0 and bins_3[-1, 0] == 3
    assert calibration.calibration_bins(np.array([[0.5, 0.5]]), np.array([0]))[7].tolist() == [1, 0.5, 1]


def test_probabilities_do_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert softmax(np.array([[1e4, 0.0]])).tolist() == [[1, 0]]
        np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


ARGUMENTS = {  # what each metric takes: a perfect prediction
    "confusion": (np.array([[3, 0], [0, 2]]),),
    "multilabel": (np.array([[[3, 0], [0, 2]]] * 2),),
    "regression": (np.arange(4.0), np.arange(4.0)),
    "language": (0.0, 4.0),
    "texts": (["the cat sat on the mat"], ["the cat sat on the mat"]),
    "retrieval": (np.ones(3, int),),
    "squad": (["The cat"], [["cat", "a dog"]]),
    "calibration": (calibration.calibration_bins(np.eye(3), np.arange(3)),),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_registered_metric_is_a_float_at_its_best_for_a_perfect_prediction(name):
    metric = lookup(METRICS, name, "metric")
    score = metric(*ARGUMENTS[METRICS[name].split(":")[0].rpartition(".")[2]])
    assert isinstance(score, float)
    others = {"perplexity": 1.0, "bleu": 100.0, "chrf": 100.0}
    assert score == pytest.approx(others.get(name, 1.0 if better(name, 1.0, 0.0) else 0.0))


def test_better_knows_the_direction_and_nan():
    assert better("accuracy", 0.9, 0.8) and not better("accuracy", 0.8, 0.8)
    assert better("loss", 0.8, 0.9) and not better("loss", 0.9, 0.8)
    nan = float("nan")
    assert not better("accuracy", nan, 0.1) and better("accuracy", 0.1, nan) and not better("loss", nan, nan)


def test_averages_of_labels_that_never_occur_are_zero():
    assert multilabel.averages(np.array([[[5, 0], [0, 0]]]), "weighted")["f1"] == 0
