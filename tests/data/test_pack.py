import itertools
import time

import numpy as np
import pytest

from jaxft.data.pack import plan, plan_groups


def short_lengths(count, seed=0):
    """Like SST-2 in word pieces: mean 26, a long tail, at most 66."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.gamma(4.0, 6.0, count).astype(np.int64) + 3, 3, 66)


@pytest.mark.parametrize("row_length", [16, 128, 300])
@pytest.mark.parametrize("max_segments", [1, 2, 5, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_example_is_packed_once_and_no_row_overflows(row_length, max_segments, seed):
    lengths = np.random.default_rng(seed).integers(1, row_length + 1, 5000)
    made = plan(lengths, row_length=row_length, max_segments=max_segments, seed=seed)
    assert np.array_equal(np.sort(made.examples), np.arange(5000))
    assert made.offsets[0] == 0 and made.offsets[-1] == 5000
    counts = np.diff(made.offsets)
    assert counts.min() >= 1 and counts.max() <= max_segments
    used = np.add.reduceat(lengths[made.examples], made.offsets[:-1])
    assert used.max() <= row_length
    assert made.fill == pytest.approx(used.sum() / (made.rows * row_length))
    assert made.examples_per_row == pytest.approx(5000 / made.rows)


def test_short_texts_fill_their_rows():
    made = plan(short_lengths(67_000), row_length=128, max_segments=16, seed=0)
    assert made.fill > 0.97


def test_one_segment_is_no_packing():
    made = plan(np.array([3, 1, 2]), row_length=4, max_segments=1, seed=0)
    assert made.examples.tolist() == [0, 1, 2] and made.offsets.tolist() == [0, 1, 2, 3]


def test_the_plan_depends_on_the_seed_alone():
    lengths = short_lengths(2000)
    same, again, other = (plan(lengths, row_length=128, max_segments=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(same.examples, again.examples) and np.array_equal(same.offsets, again.offsets)
    assert not np.array_equal(same.examples, other.examples)


def test_a_million_examples_take_seconds():
    start = time.perf_counter()
    plan(short_lengths(1_000_000), row_length=128, max_segments=16, seed=0)
    assert time.perf_counter() - start < 15  # 1.0 s on one idle core: linear, whatever the machine does meanwhile


def test_an_example_that_fits_no_row_is_an_error():
    with pytest.raises(ValueError, match="example 1 has 9 tokens"):
        plan(np.array([2, 9]), row_length=8, max_segments=2, seed=0)
    with pytest.raises(ValueError, match="example 0 has 0 tokens"):
        plan(np.array([0, 9]), row_length=9, max_segments=2, seed=0)


def test_no_examples_are_no_rows():
    made = plan(np.zeros(0, np.int64), row_length=8, max_segments=4, seed=0)
    assert made.rows == 0 and made.fill == 0


def test_groups_stay_together_in_their_order():
    rng = np.random.default_rng(0)
    begins = np.concatenate([[0], np.cumsum(rng.integers(1, 5, 400))])
    lengths = rng.integers(1, 9, begins[-1])
    made = plan_groups(lengths, begins, row_length=40, max_groups=3, seed=0)
    assert np.array_equal(np.sort(made.examples), np.arange(begins[-1]))
    assert made.max_segments == 3 * np.diff(begins).max()
    group_of = np.searchsorted(begins, made.examples, side="right") - 1
    for start, end in itertools.pairwise(made.offsets):
        row, groups = made.examples[start:end], list(dict.fromkeys(group_of[start:end]))
        assert 1 <= len(groups) <= 3 and lengths[row].sum() <= 40
        assert row.tolist() == [x for group in groups for x in range(begins[group], begins[group + 1])]
    assert made.rows < 400 / 2  # they are packed, too


def test_no_group_is_no_row():
    made = plan_groups(np.zeros(0, np.int64), np.zeros(1, np.int64), row_length=8, max_groups=2, seed=0)
    assert made.rows == 0 and len(made.examples) == 0
