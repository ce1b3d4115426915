"""Rows of a corpus: every token once, documents told apart, labels across the cut, the same for any number of hosts."""

import itertools
import types

import numpy as np
import pytest

from jaxft.data import corpus
from jaxft.data.pipeline import WHOLE, Share
from jaxft.labels import NO_LABEL

LENGTH = 8
LENGTHS = (3, 13, 1, 20, 2)


def cache():
    """Documents of these lengths, whose tokens count from 1; a document's label is its bytes."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return types.SimpleNamespace(
        ids=np.arange(1, offsets[-1] + 1, dtype=np.uint16),
        types=np.zeros(offsets[-1], np.uint8),
        offsets=offsets,
        labels=np.array([10 * n for n in LENGTHS], np.int32),
    )


def unchanged(batch, draws):
    return batch


def whole(rows=(0, 1, 2, 3, 4)):
    return corpus.assemble(cache(), np.array(rows), LENGTH)


def test_rows_hold_every_token_once_and_in_order():
    batch = whole()
    assert corpus.rows(cache(), LENGTH) == 5
    assert batch["ids"][batch["segment"] > 0].tolist() == list(range(1, 40))
    assert batch["ids"][batch["segment"] == 0].tolist() == [0]


def test_documents_are_segments_whose_positions_begin_anew_also_after_a_cut():
    batch = whole()
    assert batch["segment"][0].tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert batch["position"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch["segment"][2].tolist() == [1, 2, 2, 2, 2, 2, 2, 2], "a document of one token, then the next"
    assert batch["position"][1].tolist() == list(range(8)), "the second document goes on"
    rows, lengths = corpus.pieces(cache(), LENGTH)
    assert lengths.tolist() == [3, 5, 8, 1, 7, 8, 5, 2] and rows.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]


def test_a_token_is_labelled_with_the_next_of_its_document_even_beyond_the_row():
    batch = whole()
    ends = np.cumsum(LENGTHS).tolist()
    expected = [NO_LABEL if token in ends else token + 1 for token in range(1, 40)]
    real = batch["segment"] > 0
    assert batch["label"][real].tolist() == expected
    assert (batch["weight"] > 0).tolist() == (batch["label"] != NO_LABEL).tolist()
    assert batch["weight"].sum() == sum(LENGTHS) - len(LENGTHS), "all but the first of each document"


def test_bytes_of_all_rows_are_those_of_the_documents():
    assert whole()["bytes"].sum() == pytest.approx(10 * sum(LENGTHS))


def test_an_empty_row_counts_for_nothing():
    batch = whole([4, -1])
    for name in ("ids", "segment", "weight", "bytes"):
        assert not batch[name][1].any()
    assert batch["example"].tolist() == [[4], [-1]]


def noisy(batch, draws):
    own = np.array([draws.of_row(row).integers(1000) for row in range(len(batch["ids"]))])
    noise = draws.below(1000, LENGTH) + (1000 * draws.random(LENGTH)).astype(np.int64) + own[:, None]
    return batch | {"ids": batch["ids"] + noise.astype(np.int32)}


def test_two_processes_together_see_the_batches_of_one_and_noise_depends_on_the_step_alone():
    options = dict(batch=4, row_length=LENGTH, seed=3)
    one = list(itertools.islice(corpus.batches(cache(), noisy, start=0, share=WHOLE, **options), 4))
    late = next(corpus.batches(cache(), noisy, start=3, share=WHOLE, **options))
    np.testing.assert_array_equal(one[3]["ids"], late["ids"])
    halves = [next(corpus.batches(cache(), noisy, start=2, share=Share((i,), 2), **options)) for i in range(2)]
    for name, array in one[2].items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array, err_msg=name)
    assert len({batch["ids"].tobytes() for batch in one}) == 4


def test_evaluation_passes_over_every_row_once_and_alike_each_time():
    options = dict(batch=2, row_length=LENGTH, seed=3, share=WHOLE)
    first, second = (list(corpus.eval_batches(cache(), noisy, **options)) for _ in range(2))
    assert [batch["example"].ravel().tolist() for batch in first] == [[0, 1], [2, 3], [4, -1]]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["ids"], b["ids"])
    plain = list(corpus.eval_batches(cache(), unchanged, **options))
    assert sum(batch["weight"].sum() for batch in plain) == sum(LENGTHS) - len(LENGTHS)


def test_a_process_reads_only_its_rows_of_a_corpus():
    class Counted(np.ndarray):
        read: set

        def __getitem__(self, at):
            if isinstance(at, np.ndarray):
                Counted.read |= set(at.ravel().tolist())
            return np.asarray(super().__getitem__(at))

    held = cache()
    held.ids, Counted.read = held.ids.view(Counted), set()
    (batch,) = corpus.eval_batches(held, noisy, batch=6, row_length=LENGTH, seed=3, share=Share((1,), 3))
    assert batch["example"].ravel().tolist() == [2, 3]
    assert Counted.read == set(range(2 * LENGTH, 4 * LENGTH + 1)), "and the label of the last one, which is cut"
