"""Which spans are taken out, and that source and target together are the text."""

import types

import numpy as np
import pytest

from jaxft.data.corpus import Draws
from jaxft.labels import NO_LABEL
from jaxft.registry import UserError
from jaxft.tasks.span_corruption import SpanCorruption

START, END, FIRST, MARKS = 0, 1, 110, tuple(range(99, 89, -1))  # sentinels, in order, have falling ids as T5's do
LENGTHS = ((40,), (25, 14), (1, 2, 30, 1), (3, 3, 3, 3, 3), ())


def task(**options):
    return SpanCorruption(**{"text": "text", "metric": "", "rate": 0.15, "span": 3.0} | options)


def vocabulary(**fields):
    return types.SimpleNamespace(**{"end_id": END, "sentinels": MARKS} | fields)


def batch(seed=0):
    """Rows of 40 tokens of texts of LENGTHS, each second one with its end-of-text token."""
    rng = np.random.default_rng(seed)
    made = {name: np.zeros((len(LENGTHS), 40), np.int32) for name in ("ids", "segment", "position")}
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for slot, length in enumerate(lengths, 1):
            text = rng.integers(FIRST, 1000, length)
            if slot % 2:
                text[-1] = END
            made["ids"][row, at : at + length], made["segment"][row, at : at + length] = text, slot
            made["position"][row, at : at + length] = np.arange(length)
            at += length
    return made | {"bytes": np.ones(len(LENGTHS), np.float32), "example": np.arange(len(LENGTHS))[:, None]}


def pieces():
    return (
        np.array([row for row, lengths in enumerate(LENGTHS) for _ in lengths]),
        np.array([length for lengths in LENGTHS for length in lengths]),
    )


def corrupted(seed=1, **options):
    cfg = types.SimpleNamespace(start_id=START)
    return task(**options).change(vocabulary(), cfg, pieces)(
        batch(), Draws((seed,), len(LENGTHS), np.arange(len(LENGTHS)))
    )


def text_of(after, row, slot):
    """(source, target) of a document."""
    source = after["ids"][row][after["segment"][row] == slot]
    return source, after["label"][row][after["target_segment"][row] == slot]


def joined(source, target):
    """The text that was: each sentinel of the source replaced by what the target says of it."""
    answers, mark = {}, None
    for token in target[:-1].tolist():
        if token in MARKS:
            mark = token
            answers[mark] = []
        else:
            answers[mark].append(token)
    return [out for token in source.tolist() for out in answers.get(token, [token])]


def test_more_spans_than_there_are_sentinels_are_refused():
    with pytest.raises(UserError, match=r"a text of 40 tokens loses 20 spans, and the tokenizer has 10 sentinels"):
        corrupted(rate=0.5, span=1.0)


@pytest.mark.parametrize("options", [{}, {"rate": 0.5, "span": 5.0}, {"rate": 0.3, "span": 8.0}], ids=str)
def test_source_and_target_together_are_the_text(options):
    before, after = batch(), corrupted(**options)
    for row, lengths in enumerate(LENGTHS):
        for slot in range(1, len(lengths) + 1):
            text = before["ids"][row][before["segment"][row] == slot].tolist()
            source, target = text_of(after, row, slot)
            assert joined(source, target) == text if len(target) else source.tolist() == text


def test_a_sixth_of_a_text_is_taken_in_spans_of_three_and_its_end_stays():
    source, target = text_of(corrupted(), 0, 1)
    marks = [token for token in target.tolist() if token in MARKS]
    assert len(target) == 6 + 2 + 1 and target[-1] == END, "six of 39 tokens in two spans, and the end"
    assert marks == list(MARKS[:2]) and target[0] == MARKS[0] and source[-1] == END
    assert [token for token in source.tolist() if token in MARKS] == marks and source[0] not in MARKS


def test_the_decoder_reads_the_start_and_then_its_own_answer():
    after = corrupted()
    for row, lengths in enumerate(LENGTHS):
        for slot in range(1, len(lengths) + 1):
            inside = after["target_segment"][row] == slot
            label = after["label"][row][inside]
            if len(label):
                assert after["target_ids"][row][inside].tolist() == [START, *label[:-1]]
                assert after["target_position"][row][inside].tolist() == list(range(len(label)))
    outside = after["target_segment"] == 0
    assert (after["label"][outside] == NO_LABEL).all() and (after["weight"] == ~outside).all()


def test_targets_have_the_room_that_the_fullest_row_needs():
    rooms = {corrupted(seed)["label"].shape[1] for seed in range(20)}
    assert len(rooms) == 1 and rooms.pop() <= 16


def test_texts_of_one_token_and_empty_rows_lose_nothing():
    after = corrupted()
    assert not after["weight"][4].any() and not after["segment"][4].any()
    assert text_of(after, 2, 1)[0].tolist() == [END] and not len(text_of(after, 2, 1)[1])


def test_spans_depend_on_the_random_numbers_alone_and_fall_everywhere():
    first, again = (corrupted(3)["ids"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    places = {int(np.flatnonzero(corrupted(seed)["ids"][0] == MARKS[0])[0]) for seed in range(200)}
    assert places >= set(range(1, 25)), "the first span may begin nearly anywhere but at the very beginning"


@pytest.mark.parametrize("fields", [{"sentinels": ()}, {"end_id": None}])
def test_a_tokenizer_without_marks_is_refused_with_the_one_that_has_some(fields):
    with pytest.raises(UserError, match=r"no sentinels .*tokenizer.name='sentinels'"):
        task().change(vocabulary(**fields), None, pieces)
