"""Any number of labels a row: lists, parted text, or 0/1 columns."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data.source import Split
from jaxft.registry import BadRow, UserError
from jaxft.tasks.multilabel import Multilabel

OPTIONS = {
    "text": "text",
    "pair": "",
    "label": "label",
    "metric": "",
    "separator": "",
    "threshold": 0.5,
    "smoothing": 0.0,
}


def split(rows, file="data.jsonl"):
    return Split(rows, file, lambda i: f"{file}:{i + 1}")


def labelled(*labels, file="data.jsonl"):
    return split([{"text": f"text {i}", "label": label} for i, label in enumerate(labels)], file)


def fit(*labels, names=(), **options):
    return Multilabel(**OPTIONS | options).fit({"train": labelled(*labels)}, {"label": names} if names else {})


def vectors(task, *labels):
    return [task.example(row).label for row in labelled(*labels).rows]


def test_lists_of_names():
    task = fit(["b", "a"], [], ["c"])
    assert task.classes == ("a", "b", "c") and task.outputs == 3
    assert vectors(task, ["c", "a"], []) == [[1, 0, 1], [0, 0, 0]]


def test_lists_of_ids_of_named_classes():
    task = fit([0], [1, 0], names=("zebra", "ant"))
    assert task.classes == ("zebra", "ant") and vectors(task, [1]) == [[0, 1]]
    with pytest.raises(BadRow, match="label is 2, but classes have the ids 0 to 1"):
        vectors(task, [2])


def test_text_parted_by_a_separator():
    task = fit("b|a", "", "a | c", separator="|")
    assert task.classes == ("a", "b", "c") and vectors(task, "c|a|", "") == [[1, 0, 1], [0, 0, 0]]


def test_columns_of_zeros_and_ones():
    rows = [{"text": "x", "toxic": 1, "insult": "0"}, {"text": "y", "toxic": False, "insult": 1.0}]
    task = Multilabel(**OPTIONS | {"label": "toxic, insult"}).fit({"train": split(rows)}, {})
    assert task.classes == ("toxic", "insult")
    assert [task.example(row).label for row in rows] == [[1, 0], [0, 1]]
    with pytest.raises(BadRow, match="label 'insult' is 2, neither 0 nor 1"):
        task.example(rows[0] | {"insult": 2})
    with pytest.raises(UserError, match=r"task\.label='obscene'.*columns: text, toxic, insult"):
        Multilabel(**OPTIONS | {"label": "toxic,obscene"}).fit({"train": split(rows)}, {})
    with pytest.raises(UserError, match="differ from the columns"):
        Multilabel(**OPTIONS | {"label": "toxic,insult", "classes": ("a", "b")}).fit({"train": split(rows)}, {})


@pytest.mark.parametrize(
    ("label", "options", "reason"),
    [
        (None, {}, "label is empty"),
        ("a", {}, "label is a str, not a list; task.separator"),
        (["a"], {"separator": ","}, "label is a list, not text parted by ','"),
        ([None], {}, "label is empty"),
        ([["a"]], {}, "label is a list"),
        (["d"], {}, "label 'd' is not one of the 2 classes"),
    ],
)
def test_a_label_that_cannot_be_used_is_a_bad_row(label, options, reason):
    with pytest.raises(BadRow, match=reason):
        vectors(Multilabel(**OPTIONS | options | {"classes": ("a", "b")}), label)


def test_labels_that_train_never_had_and_a_train_split_without_any():
    splits = {"train": labelled(["a"], ["b"]), "test": labelled(["a"], ["a", "z"], file="t.jsonl")}
    with pytest.raises(
        UserError, match=r"test split has labels that the train split never had: 'z' \(t.jsonl:2, 1 row\)"
    ):
        Multilabel(**OPTIONS).fit(splits, {})
    with pytest.raises(UserError, match="no row of the train split has a label"):
        fit([], [])


def test_accuracy_wants_every_label_right_and_heeds_the_threshold():
    logits_BSC = jnp.array([[[2.0, -2.0], [2.0, 0.5], [9.0, 9.0]]])
    batch = {"label": jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]), "weight": jnp.array([[1.0, 1.0, 0.0]])}
    assert fit(["a"], ["b"]).loss(logits_BSC, batch)["accuracy"] == (1, 2)
    assert fit(["a"], ["b"], threshold=0.7).loss(logits_BSC, batch)["accuracy"] == (2, 2)


def test_predictions_list_labels_above_the_threshold():
    (prediction,) = fit(["a"], ["b"], threshold=0.7).predictions(np.array([[0.0, 3.0]]), [{}])
    assert prediction["labels"] == ["b"]
    assert prediction["probabilities"] == pytest.approx({"a": 0.5, "b": 1 / (1 + np.exp(-3.0))})


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.0}, {"smoothing": -0.1}, {"label": "a,a"}])
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=rf"task\.{name}"):
        Multilabel(**OPTIONS | options)
