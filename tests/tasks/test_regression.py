"""Regression on numbers as they are."""

import pytest

from jaxft.data.source import Split
from jaxft.registry import BadRow, UserError
from jaxft.tasks.regression import Regression

TASK = Regression(text="text", pair="", label="label", metric="")


def labelled(*labels):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return Split(rows, "", lambda i: f"data.jsonl:{i + 1}")


@pytest.mark.parametrize(("label", "number"), [(2.5, 2.5), (3, 3.0), ("4.25", 4.25), ("-1e2", -100.0)])
def test_numbers_of_any_type_are_taken_as_they_are(label, number):
    assert TASK.fit({"train": labelled(label)}, {}).example(labelled(label).rows[0]).label == number


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "label is empty"),
        ("high", "label 'high' is not a number"),
        (float("nan"), "label is nan"),
        ("inf", "label is inf"),
        (True, "label is a bool, not a number"),
    ],
)
def test_what_is_no_number_is_a_bad_row(label, reason):
    with pytest.raises(BadRow, match=reason):
        TASK.example(labelled(label).rows[0])
    with pytest.raises(UserError, match=rf"train split has no usable label \({reason}"):
        TASK.fit({"train": labelled(label)}, {})


def test_named_classes_are_not_numbers():
    with pytest.raises(UserError, match=r"holds classes \(no, yes, \.\.\.\), not numbers; set task.name='cls'"):
        TASK.fit({"train": labelled(0, 1)}, {"label": ("no", "yes")})


def test_metric_and_outputs():
    assert TASK.metric == "spearman" and TASK.outputs == 1
    with pytest.raises(UserError, match=r"task\.metric='accuracy' is not known here; known: spearman, pearson"):
        Regression(text="text", pair="", label="label", metric="accuracy")
