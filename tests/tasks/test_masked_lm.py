"""Which tokens are hidden, how, and what is told of them."""

import types

import numpy as np
import pytest

from jaxft.data.corpus import Draws
from jaxft.registry import UserError
from jaxft.tasks.masked_lm import MaskedLm

MASK, SPECIAL, WORDS = 4, 5, 105  # ids below 5 are special
B, L = 64, 40


def task(**options):
    return MaskedLm(**{"text": "text", "metric": "", "rate": 0.15, "whole_words": False} | options)


def vocabulary(mask=MASK):
    special_V, begins_V = np.zeros(WORDS, bool), np.ones(WORDS, bool)
    special_V[:SPECIAL] = True
    begins_V[60:] = False  # the second half goes on with a word
    return types.SimpleNamespace(mask_id=mask, special_V=special_V, begins_V=begins_V)


def batch(seed=0, rows=B):
    """Rows of several lengths that begin and end with a special token; the last is empty."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(SPECIAL, WORDS, (rows, L)).astype(np.int32)
    length = rng.integers(10, L + 1, rows)
    segment = (np.arange(L) < length[:, None]).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(rows), length - 1] = 3
    segment[-1] = 0
    position = np.broadcast_to(np.arange(L, dtype=np.int32), (rows, L))
    return {"ids": ids * segment, "segment": segment, "position": position}


def hidden(seed=1, **options):
    before = batch()
    return before, task(**options).change(vocabulary(), None, None)(dict(before), Draws((seed,), B, np.arange(B)))


def chosen(after):
    """(row, place) of every token that is guessed."""
    rows, slots = np.nonzero(after["weight"])
    return rows, after["at"][rows, slots]


@pytest.mark.parametrize("whole_words", [False, True])
def test_labels_are_what_stood_there_and_nothing_else_changes(whole_words):
    before, after = hidden(whole_words=whole_words)
    rows, places = chosen(after)
    np.testing.assert_array_equal(after["label"][after["weight"] > 0], before["ids"][rows, places])
    untouched = np.ones((B, L), bool)
    untouched[rows, places] = False
    np.testing.assert_array_equal(after["ids"][untouched], before["ids"][untouched])
    assert (before["segment"][rows, places] > 0).all() and (before["ids"][rows, places] >= SPECIAL).all()
    assert len({*zip(rows.tolist(), places.tolist(), strict=True)}) == len(rows), "each once"


def test_each_row_hides_the_rate_of_its_ordinary_tokens_and_an_empty_row_none():
    before, after = hidden()
    ordinary = ((before["segment"] > 0) & (before["ids"] >= SPECIAL)).sum(1)
    expected = np.where(ordinary, np.maximum(1, np.rint(0.15 * ordinary)), 0)
    np.testing.assert_array_equal(after["weight"].sum(1), expected)
    assert after["at"].shape == (B, 6) and after["weight"][-1].sum() == 0


def test_eight_in_ten_become_the_mask_one_any_word_one_stays():
    kinds = np.zeros(3)
    for seed in range(60):
        before, after = hidden(seed)
        rows, places = chosen(after)
        now, then = after["ids"][rows, places], before["ids"][rows, places]
        kinds += [(now == MASK).sum(), ((now != MASK) & (now != then)).sum(), (now == then).sum()]
        assert (now[now != MASK] >= SPECIAL).all(), "a random word is never special"
    np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.01)


def test_every_ordinary_token_is_as_likely_as_any_other():
    counts, real = np.zeros(L), np.zeros(L)
    for seed in range(400):
        before, after = hidden(seed)
        _, places = chosen(after)
        counts += np.bincount(places, minlength=L)
        real += ((before["segment"] > 0) & (before["ids"] >= SPECIAL)).sum(0)
    share = counts[1:9] / real[1:9]  # places that every row has
    np.testing.assert_allclose(share, share.mean(), rtol=0.1)


def test_of_words_all_pieces_are_hidden_or_none():
    before, after = hidden(whole_words=True)
    starts = vocabulary().begins_V[before["ids"]] | (before["ids"] < SPECIAL)
    word = np.cumsum(starts, axis=1)
    rows, places = chosen(after)
    marked = np.zeros((B, L), bool)
    marked[rows, places] = True
    for row in range(B - 1):
        for one in np.unique(word[row][marked[row]]):
            pieces = (word[row] == one) & (before["segment"][row] > 0) & (before["ids"][row] >= SPECIAL)
            alone = (word[row][marked[row]] == one).all()  # a word longer than all that may be hidden is cut
            assert marked[row][pieces].all() or alone
    assert after["weight"].sum() > 0.8 * hidden()[1]["weight"].sum()


def test_the_same_random_numbers_hide_the_same_tokens_and_others_do_not():
    first, again, other = (hidden(seed)[1]["ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_tokenizer_without_a_mask_is_refused_with_the_task_that_needs_none():
    with pytest.raises(UserError, match=r"no mask token.*task.name=causal_lm"):
        task().change(vocabulary(mask=None), None, None)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(UserError, match=r"task.rate=.*0.15 is BERT's"):
        task(rate=rate)
