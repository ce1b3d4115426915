"""Which of equal and nearly equal documents stay."""

import random

import numpy as np
import pytest

from jaxft.corpora.duplicates import Near, exact_duplicates, near_duplicates, root
from jaxft.registry import UserError

NEAR = Near(ngram=5, bands=14, rows=8, threshold=0.75)
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "")]


def jaccard(one, other):
    """Exact, of the sets of n-grams as tuples of words."""

    def ngrams(text):
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    a, b = ngrams(one), ngrams(other)
    return len(a & b) / len(a | b)


def planted(count=400, seed=0):
    """(original, changed) texts of 60 to 200 words; of the changed ones 0 to 30 % of the words are others."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(60, 200))
        changed, share = list(words), rng.choice((0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3))
        for at in range(len(words)):
            if rng.random() < share:
                changed[at] = rng.choice(WORDS)
        pairs.append((" ".join(words), ", ".join(changed).upper() + "!"))
    return pairs


def leaders(texts, near=NEAR):
    signatures = np.stack([near.signature(text) for text in texts])
    return near_duplicates(near, signatures, np.ones(len(texts), bool))


def test_planted_near_duplicates_are_found_and_little_else():
    pairs = planted()
    found = leaders([text for pair in pairs for text in pair])
    similar = np.array([jaccard(one, other.replace(",", "").replace("!", "")) for one, other in pairs])
    taken = found[1::2] >= 0
    assert (found[::2] < 0).all() and (found[1::2][taken] == np.flatnonzero(taken) * 2).all(), (
        "only the later of a pair"
    )
    assert taken[similar >= 0.9].mean() >= 0.99 and (similar >= 0.9).sum() > 100  # recall where they are alike
    assert taken[similar >= 0.75].mean() >= 0.85
    assert taken[similar < 0.6].mean() <= 0.01 and (similar < 0.6).sum() > 100
    assert (similar[taken] >= 0.75).mean() >= 0.9  # precision


def test_signatures_agree_as_often_as_sets_of_ngrams_overlap():
    errors = []
    for one, other in planted(100, seed=1):
        estimate = (NEAR.signature(one) == NEAR.signature(other)).mean()
        errors.append(estimate - jaccard(one, other.replace(",", "").replace("!", "")))
    # 112 numbers: a standard error of 0.047 at most.
    assert abs(np.mean(errors)) < 0.015 and np.std(errors) < 0.05


def test_the_share_that_meets_in_a_bucket_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    near, pairs = Near(5, 14, 8, 0.01), 2000
    for similarity in (0.5, 0.7, 0.8, 0.9):
        one = rng.integers(0, 2**32, (pairs, near.size), np.uint32)
        other = np.where(rng.random(one.shape) < similarity, one, rng.integers(0, 2**32, one.shape, np.uint32))
        met = np.zeros(pairs, bool)
        for bucket in near.buckets(np.concatenate([one, other])):
            met |= bucket[:pairs] == bucket[pairs:]
        expected = 1 - (1 - similarity**near.rows) ** near.bands
        assert abs(met.mean() - expected) < 4 * (expected * (1 - expected) / pairs) ** 0.5 + 1e-3


def test_no_two_documents_that_stay_share_a_bucket_and_agree():
    rng = random.Random(2)
    texts = []
    for _ in range(30):  # families of copies that drift apart
        words = rng.choices(WORDS, k=120)
        for _ in range(rng.randint(1, 8)):
            texts.append(" ".join(words))
            for _ in range(4):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
    rng.shuffle(texts)
    signatures = np.stack([NEAR.signature(text) for text in texts])
    found = near_duplicates(NEAR, signatures, np.ones(len(texts), bool))
    stay = np.flatnonzero(found < 0)
    for bucket in NEAR.buckets(signatures):
        for i, one in enumerate(stay):
            for other in stay[i + 1 :]:
                assert bucket[one] != bucket[other] or (signatures[one] == signatures[other]).mean() < NEAR.threshold
    assert 20 < len(stay) < len(texts)
    assert all(found[one] < one and root(found, one) in stay for one in np.flatnonzero(found >= 0))


def test_chinese_is_compared_by_characters_and_short_texts_as_wholes():
    text = "".join(chr(0x4E00 + i * 7 % 900) for i in range(200))
    assert leaders([text, text.replace(text[100], "说"), text[::-1]]).tolist() == [-1, 0, -1]
    assert leaders(["one two", "One, two.", "one three"]).tolist() == [-1, 0, -1]
    assert leaders(["!!! ???", "-> <- =>", "!!! ???"]).tolist() == [-1, -1, 0]


def test_of_equal_texts_the_first_stays():
    digests = np.array([[7, 1], [3, 2], [7, 1], [7, 2], [3, 2], [7, 1]], np.uint64)
    assert exact_duplicates(digests).tolist() == [-1, -1, 0, -1, 1, 0]
    assert exact_duplicates(np.zeros((0, 2), np.uint64)).tolist() == []


def test_who_went_as_an_exact_duplicate_takes_no_part():
    texts = ["a b c d e f g h", "i j k l m n o p", "a b c d e f g h"]
    signatures = np.stack([NEAR.signature(text) for text in texts])
    assert near_duplicates(NEAR, signatures, np.array([False, True, True])).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("wrong", [{"ngram": 0}, {"bands": 0}, {"rows": 0}, {"threshold": 0.0}, {"threshold": 1.1}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match="duplicates"):
        Near(**({"ngram": 5, "bands": 14, "rows": 8, "threshold": 0.75} | wrong))
