"""Classification: labels of any type, and every mistake in the data named."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data.source import Split
from jaxft.registry import BadRow, UserError
from jaxft.tasks.cls import Cls
from jaxft.tasks.pair import Pair

OPTIONS = {"text": "text", "pair": "", "label": "label", "metric": "", "smoothing": 0.0}
NAN = float("nan")


def split(rows, file="data.jsonl"):
    return Split(rows, file, lambda i: f"{file}:{i + 1}")


def labelled(*labels, file="data.jsonl"):
    return split([{"text": f"text {i}", "label": label} for i, label in enumerate(labels)], file)


def fit(*labels, names=(), **options):
    return Cls(**OPTIONS | options).fit({"train": labelled(*labels)}, {"label": names} if names else {})


def ids(task, *labels):
    return [task.example(row).label for row in labelled(*labels).rows]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("pos", "neg", "pos"), ("neg", "pos")),
        ((10, 9, 2), ("2", "9", "10")),
        (("10", "9", "2"), ("2", "9", "10")),
        ((1, -1, 0), ("-1", "0", "1")),
        ((1.0, 0.0), ("0", "1")),
        ((True, False), ("False", "True")),
        ((0, "1", 1.0), ("0", "1")),
        (("10", "9", "b"), ("10", "9", "b")),
    ],
)
def test_classes_come_from_the_train_split_in_a_stable_order(labels, classes):
    task = fit(*labels)
    assert task.classes == fit(*reversed(labels)).classes == classes
    assert task.outputs == len(classes)
    assert sorted(set(ids(task, *labels))) == list(range(len(classes)))


def test_named_classes_keep_the_order_of_the_source_and_numbers_are_their_ids():
    task = fit(1, 0, "zebra", True, names=("zebra", "ant"))
    assert task.classes == ("zebra", "ant")
    assert ids(task, 0, 1, "1", "ant", 1.0, False) == [0, 1, 1, 1, 1, 0]


def test_numbers_stay_names_where_a_class_is_called_by_a_number():
    task = fit(3, 5)
    assert ids(task, 3, "5", 5.0) == [0, 1, 1]
    with pytest.raises(BadRow, match="label '0' is not one of the 2 classes"):
        ids(task, 0)


@pytest.mark.parametrize("classes", [("True", "False"), ("Abstain", "False", "True"), ("Yes", "True")])
def test_a_bool_is_the_class_of_its_name_and_not_an_id(classes):
    task = fit(*(name == "True" if name in ("True", "False") else name for name in classes), classes=classes)
    assert ids(task, True, "True") == [classes.index("True")] * 2
    if "False" in classes:
        assert ids(task, False, "False") == [classes.index("False")] * 2
    else:
        with pytest.raises(BadRow, match="label 'False' is not one of the 2 classes"):
            ids(task, False)


def test_bools_among_other_labels_keep_their_meaning():
    task = fit(True, False, "Abstain")
    assert [task.classes[i] for i in ids(task, True, False, "Abstain")] == ["True", "False", "Abstain"]


@pytest.mark.parametrize("mark", [-100, "-100", -100.0])
def test_the_mark_of_an_unlabelled_row_is_no_class(mark):
    task = fit(0, mark, 1)
    assert task.classes == ("0", "1")
    with pytest.raises(BadRow, match=r"label is -100, which marks a row without a label; name it in task\.classes"):
        ids(task, mark)
    with pytest.raises(UserError, match=r"test split has no usable label \(label is -100"):
        Cls(**OPTIONS).fit({"train": labelled(0, 1), "test": labelled(mark, mark)}, {})
    assert ids(fit(0, mark, classes=("-100", "0")), mark) == [0]


def test_classes_of_the_config_win_and_decide_the_order():
    task = fit("neg", "pos", classes=("pos", "neg"))
    assert task.classes == ("pos", "neg") and ids(task, "pos") == [0]
    with pytest.raises(
        UserError, match=r"train split has labels that are not among the known classes: 'x' \(data.jsonl:3, 1"
    ):
        fit("neg", "pos", "x", classes=("pos", "neg"))


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "label is empty"),
        (NAN, "label is nan"),
        (float("inf"), "label is inf"),
        ("  ", "label is empty"),
        (0.5, "label is 0.5, neither text nor whole; task.name='regression'"),
        (["a"], "label is a list"),
    ],
)
def test_a_label_that_is_none_is_a_bad_row_and_never_a_class(label, reason):
    task = fit("a", label, "b")
    assert task.classes == ("a", "b")
    with pytest.raises(BadRow, match=reason):
        ids(task, label)


@pytest.mark.parametrize("label", [-1, 2, -100])
def test_an_id_outside_the_named_classes_is_a_bad_row(label):
    with pytest.raises(BadRow, match=rf"label is {label}, but classes have the ids 0 to 1"):
        ids(fit(0, 1, names=("no", "yes")), label)


def test_labels_that_train_never_had_are_named_with_their_places():
    splits = {"train": labelled("good", "bad"), "validation": labelled("good", "god", "bad", "god", file="dev.csv")}
    with pytest.raises(UserError) as error:
        Cls(**OPTIONS).fit(splits, {})
    assert str(error.value) == (
        "the validation split has labels that the train split never had: 'god' (dev.csv:2, 2 rows); "
        'did you mean "good"?'
    )


def test_an_unlabelled_split_is_recognised():
    with pytest.raises(UserError, match="-1 stands for unlabelled: leave this split out"):
        Cls(**OPTIONS).fit({"train": labelled(0, 1), "test": labelled(-1, -1)}, {})
    with pytest.raises(UserError, match=r"test split has no usable label \(label is -1"):
        Cls(**OPTIONS).fit({"train": labelled(0, 1), "test": labelled(-1, -1)}, {"label": ("no", "yes")})


def test_a_missing_column_lists_the_columns_and_the_nearest():
    rows = split([{"sentence": "a", "labels": 1}])
    with pytest.raises(
        UserError, match=r"task.text='sentense': the train split has no .*columns: sentence, labels; did.*\"sent"
    ):
        Cls(**OPTIONS | {"text": "sentense"}).fit({"train": rows}, {})
    with pytest.raises(UserError, match=r"task\.label='label'.*did you mean \"labels\""):
        Cls(**OPTIONS | {"text": "sentence"}).fit({"train": rows}, {})


def test_a_column_that_only_some_rows_lack_is_a_matter_of_those_rows():
    rows = split([{"text": "x"}, {"text": "a", "label": "a"}, {"text": "b", "label": "b"}])
    task = Cls(**OPTIONS).fit({"train": rows}, {})
    with pytest.raises(BadRow, match="no column 'label'"):
        task.example(rows.rows[0])


def test_empty_splits_and_single_classes_are_refused():
    with pytest.raises(UserError, match="the train split is empty"):
        fit()
    with pytest.raises(UserError, match="a single class"):
        fit("a", "a")
    with pytest.raises(UserError, match=r"no usable label \(label is nan\)"):
        fit(NAN)


def test_rows_that_cannot_be_read_are_left_to_the_token_cache():
    class Rows(list):
        def __getitem__(self, i):
            if i == 0:
                raise BadRow("not UTF-8")
            return super().__getitem__(i)

    rows = split(Rows([None, {"text": "a", "label": "a"}, {"text": "b", "label": "b"}]))
    assert Cls(**OPTIONS).fit({"train": rows}, {}).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'text' is empty"),
        (" \n", "'text' is empty"),
        (None, "'text' is empty"),
        (["a"], "'text' is a list, not text"),
    ],
)
def test_a_text_that_is_none_is_a_bad_row(text, reason):
    with pytest.raises(BadRow, match=reason):
        fit("a", "b").example({"text": text, "label": "a"})


def test_examples_carry_text_pair_and_label_and_need_no_label_to_predict():
    task = Cls(**OPTIONS | {"pair": "other", "classes": ("a", "b")})
    assert task.example({"text": "x", "other": 1984, "label": "b"}) == ("x", "1984", 1)
    assert task.example({"text": "x", "other": "y"}, labelled=False) == ("x", "y", None)
    with pytest.raises(BadRow, match="no column 'other'"):
        task.example({"text": "x"}, labelled=False)


def test_pair_needs_the_second_column():
    with pytest.raises(UserError, match=r"task\.pair=''"):
        Pair(**OPTIONS)
    assert (
        Pair(**OPTIONS | {"pair": "text"})
        .fit({"train": labelled("a", "b")}, {})
        .example({"text": "x", "label": "a"})[1]
        == "x"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, r"task\.smoothing=1\.0"),
        ({"metric": "acuracy"}, r"task\.metric='acuracy'.*did you mean \"accuracy\""),
        ({"classes": ("a", "a")}, r"task\.classes gives more than one class the name 'a'"),
        ({"metric": "f1", "classes": ("a", "b", "c")}, "take macro_f1"),
        ({"text": ""}, r"task\.text=''"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Cls(**OPTIONS | options)


def test_training_accuracy_counts_real_labels_only():
    task = fit("a", "b", "c")
    logits_BSC = jnp.eye(3)[jnp.array([[0, 1], [2, 0]])] * 5
    batch = {"label": jnp.array([[0, 2], [-100, 0]]), "weight": jnp.array([[1.0, 1.0], [1.0, 0.0]])}
    sums = task.loss(logits_BSC, batch)
    assert sums["accuracy"] == (1, 2)
    assert sums["loss"][1] == 2


def test_smoothing_reaches_the_loss():
    batch = {"label": jnp.array([[0]]), "weight": jnp.ones((1, 1))}
    plain, smooth = (fit("a", "b", smoothing=s).loss(jnp.array([[[9.0, 0.0]]]), batch)["loss"][0] for s in (0.0, 0.1))
    np.testing.assert_allclose(smooth - plain, 0.1 * 9 / 2, rtol=1e-5)


def test_predictions_name_the_class_and_all_probabilities():
    (prediction,) = fit("a", "b").predictions(np.log([[1.0, 3.0]]), [{}])
    assert prediction["label"] == "b"
    assert prediction["probabilities"] == pytest.approx({"a": 0.25, "b": 0.75})
