"""Entities in tags, against seqeval where it is installed, and cases by hand."""

import warnings

import numpy as np
import pytest

from jaxft.metrics import multilabel
from jaxft.metrics.entities import are_entities
from jaxft.metrics.tags import EntityMeter, TagMeter

KINDS = ("LOC", "PER", "a-b")


def classes(prefixes):
    return ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in prefixes))


def sentences(rng, names):
    """(truth, predicted) class ids of a few sentences, most of whose tags do not fit each other."""
    lengths = rng.integers(1, 12, rng.integers(1, 10))
    truth = [rng.choice(len(names), n, p=[0.4] + [0.6 / (len(names) - 1)] * (len(names) - 1)) for n in lengths]
    return truth, [np.where(rng.random(len(t)) < 0.6, t, rng.integers(0, len(names), len(t))) for t in truth]


def meter_of(names, truth, predicted):
    """In two batches."""
    meter = EntityMeter(names)
    for part in (slice(0, len(truth) // 2), slice(len(truth) // 2, None)):
        if truth[part]:
            number_W = np.concatenate([np.full(len(one), 3 * i) for i, one in enumerate(truth[part])])
            meter.add(np.concatenate(predicted[part]), np.concatenate(truth[part]), number_W)
    return meter


@pytest.mark.parametrize(("prefixes", "scheme"), [("BI", "IOB2"), ("BIES", "IOBES")])
def test_scores_equal_those_of_seqeval_also_of_tags_that_do_not_fit(prefixes, scheme):
    pytest.importorskip("seqeval", reason="the reference of entity scores")
    from seqeval import scheme as schemes
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as default
    from seqeval.metrics.v1 import precision_recall_fscore_support as strict

    names, rng = classes(prefixes), np.random.default_rng(0)
    for _ in range(40):
        truth, predicted = sentences(rng, names)
        meter = meter_of(names, truth, predicted)
        words = [[[names[i] for i in one] for one in side] for side in (truth, predicted)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for average in ("micro", "macro", "weighted"):
                expected = default(*words, average=average, zero_division=0)[:3]
                present = [row for row in meter.counts_K22 if row.sum()]  # seqeval leaves out what never occurs
                scores = multilabel.averages(np.stack(present), average)
                np.testing.assert_allclose(expected, [scores[name] for name in ("precision", "recall", "f1")])
            expected = strict(*words, average="micro", zero_division=0, scheme=getattr(schemes, scheme))[2]
        assert meter.result()["strict_f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-LOC I-LOC O I-LOC", [(0, 2, "LOC"), (3, 4, "LOC")]),  # I behind O begins one
        ("I-LOC I-PER B-PER", [(0, 1, "LOC"), (1, 2, "PER"), (2, 3, "PER")]),  # so does another type, and B
        ("S-LOC E-LOC B-LOC E-LOC", [(0, 1, "LOC"), (1, 2, "LOC"), (2, 4, "LOC")]),
        ("O O", []),
    ],
)
def test_tags_that_do_not_fit_are_mended(tags, expected):
    names = classes("BIES")
    meter = EntityMeter(names)
    tag_W = np.array([names.index(tag) for tag in tags.split()])
    found = meter.tags.entities(tag_W, np.arange(len(tag_W)) == 0)
    assert [(b, e, meter.tags.kinds[k]) for b, e, k in zip(*found, strict=True)] == expected


def test_an_entity_ends_with_its_sentence():
    meter = EntityMeter(("B-x", "I-x", "O"))
    tag_W = np.array([0, 1, 1, 1])
    assert list(zip(*meter.tags.entities(tag_W, np.array([True, False, True, False])), strict=True)) == [
        (0, 2, 0),
        (2, 4, 0),
    ]


@pytest.mark.parametrize(
    ("names", "entities"),
    [
        (("O", "B-x"), True),
        (("O", "I-x", "I-y"), True),
        (("B", "I", "O"), True),
        (("O",), False),
        (("NOUN", "VERB"), False),
        (("O", "B-x", "NOUN"), False),
        (("B", "C"), False),
    ],
)
def test_which_classes_are_tags_of_entities(names, entities):
    assert are_entities(names) is entities


def test_words_are_counted_with_those_that_were_lost():
    meter = TagMeter(("a", "b"))
    seen = {
        "predicted": np.array([[0, 1, 1, 0]]),
        "label": np.array([[-100, 1, 0, 0]]),
        "segment": np.array([[1, 1, 2, 2]]),
        "example": np.array([[5, 6, -1]]),
        "lost": np.array([[0, 4, 0]]),
    }
    meter.update({"loss": (6.0, 3.0)}, seen)
    report = meter.report()
    assert (report["examples"], report["words"], report["words_lost"]) == (2, 3, 4)
    assert report["loss"] == 2 and report["accuracy"] == pytest.approx(2 / 3)
    assert report["confusion"] == [[1, 1], [0, 1]] and "words_lost" in meter.table()
