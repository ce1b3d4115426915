"""Order, resume and content of batches (PERF_RELIABILITY B3 #7, A3)."""

import dataclasses
import subprocess
import sys
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest

from jaxft.data import pipeline, tokens
from jaxft.data.pack import plan, plan_groups
from jaxft.data.pipeline import Share

ROW_LENGTH = 16


class Example(NamedTuple):
    text: str
    pair: str | None
    label: object


def cache_of(count=100, label=lambda n: n % 3):
    """Example n has 1 to 8 tokens, all of id n + 1."""
    lengths = np.random.default_rng(0).integers(1, 9, count).tolist()

    def encode(texts):
        return [([int(t) + 1] * lengths[int(t)], [int(t) % 2] * lengths[int(t)], False) for t, _ in texts]

    return tokens.in_memory([Example(str(n), None, label(n)) for n in range(count)], encode)


CACHE = cache_of()
PLAN = plan(CACHE.lengths, row_length=ROW_LENGTH, max_segments=4, seed=0)


def stream(start=0, share=pipeline.WHOLE, batch=4, shuffle=True, seed=0, the_plan=PLAN):
    return pipeline.batches(
        CACHE, the_plan, batch=batch, row_length=ROW_LENGTH, seed=seed, start=start,
        share=share, shuffle=shuffle,
    )  # fmt: skip


def take(count, **options):
    return list(islice(stream(**options), count))


def rows_of(batches):
    """Each row as the tuple of its examples."""
    return [tuple(row[row >= 0].tolist()) for batch in batches for row in batch["example"]]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_batch_says_where_every_token_belongs():
    for batch in take(5):
        assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
            **dict.fromkeys(["ids", "type", "segment", "position"], ("int32", (4, ROW_LENGTH))),
            **dict.fromkeys(["first", "label", "example"], ("int32", (4, 4))),
            "weight": ("float32", (4, 4)),
        }
        seen = np.zeros_like(batch["ids"])
        for b in range(4):
            for s in range(4):
                example, first = batch["example"][b, s], batch["first"][b, s]
                if example < 0:
                    assert batch["weight"][b, s] == batch["label"][b, s] == first == 0
                    assert not (batch["segment"][b] == s + 1).any()
                    continue
                span = np.s_[b, first : first + CACHE.lengths[example]]
                assert (batch["ids"][span] == example + 1).all() and (batch["type"][span] == example % 2).all()
                assert (batch["segment"][span] == s + 1).all()
                assert batch["position"][span].tolist() == list(range(CACHE.lengths[example]))
                assert batch["label"][b, s] == example % 3 and batch["weight"][b, s] == 1
                seen[span] = 1
        assert not batch["ids"][seen == 0].any() and not batch["segment"][seen == 0].any()


def test_every_row_comes_once_an_epoch_in_a_new_order():
    rows = rows_of(take(PLAN.rows, batch=4))  # four epochs
    epochs = [rows[e * PLAN.rows : (e + 1) * PLAN.rows] for e in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert sorted(sum(epochs[0], ())) == list(range(100))
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows_of(take(8, seed=1)) != rows[:32]


def test_without_shuffle_the_order_is_the_plans():
    rows = rows_of(take(PLAN.rows, shuffle=False))
    assert rows[: PLAN.rows] == [
        tuple(PLAN.examples[a:b].tolist()) for a, b in zip(PLAN.offsets, PLAN.offsets[1:], strict=False)
    ]
    assert rows[PLAN.rows :] == rows[: PLAN.rows] * 3


def test_resuming_at_any_step_equals_the_unbroken_stream():
    steps = 3 * PLAN.rows // 4 + 2  # three epoch boundaries, inside batches too
    assert PLAN.rows % 4
    unbroken = take(steps + 3)
    for start in range(steps):
        for expected, got in zip(unbroken[start:], take(3, start=start), strict=False):
            assert same(expected, got)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_parts_of_all_processes_are_the_batch_of_one(processes):
    whole = take(20, batch=6)
    parts = [take(20, batch=6, share=Share((p,), processes)) for p in range(processes)]
    for k, batch in enumerate(whole):
        assert same(batch, {key: np.concatenate([part[k][key] for part in parts]) for key in batch})


def test_a_resumed_run_may_have_another_number_of_processes():
    whole = take(10, batch=4)
    parts = [take(5, batch=4, start=5, share=Share((p,), 2)) for p in range(2)]
    for k in range(5):
        assert same(whole[5 + k], {key: np.concatenate([part[k][key] for part in parts]) for key in whole[0]})


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="batch=5 is not divisible by the 2 blocks of rows; use 4"):
        take(1, batch=5, share=Share((0,), 2))
    with pytest.raises(ValueError, match="batch=1 is not divisible by the 2 blocks of rows; use 2"):
        take(1, batch=1, share=Share((0,), 2))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_is_one_pass_with_equal_shares(processes):
    parts = [
        list(pipeline.eval_batches(CACHE, PLAN, batch=8, row_length=ROW_LENGTH, share=Share((p,), processes)))
        for p in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-PLAN.rows // 8)}
    assert {batch["ids"].shape for part in parts for batch in part} == {(8 // processes, ROW_LENGTH)}
    seen = sorted(sum((row for part in parts for row in rows_of(part)), ()))
    assert seen == list(range(100))
    assert sum(batch["weight"].sum() for part in parts for batch in part) == 100


def test_a_batch_of_padding_alone_is_empty():
    batch = pipeline.assemble(CACHE, PLAN, np.array([pipeline.EMPTY, pipeline.EMPTY]), ROW_LENGTH)
    assert not any(batch[key].any() for key in batch if key != "example") and (batch["example"] == -1).all()


def test_vector_labels_keep_their_axis():
    cache = cache_of(10, label=lambda n: [n, 0.5, 1.0])
    made = plan(cache.lengths, row_length=ROW_LENGTH, max_segments=3, seed=0)
    batch = next(pipeline.eval_batches(cache, made, batch=16, row_length=ROW_LENGTH, share=pipeline.WHOLE))
    assert batch["label"].shape == (16, 3, 3) and batch["label"].dtype == np.float32
    real = batch["example"] >= 0
    assert (batch["label"][real][:, 0] == batch["example"][real]).all() and not batch["label"][~real].any()


def test_one_example_a_row_is_a_plan_like_any_other():
    unpacked = plan(CACHE.lengths, row_length=ROW_LENGTH, max_segments=1, seed=0)
    batch = take(1, the_plan=unpacked)[0]
    assert batch["first"].shape == (4, 1) and not batch["first"].any() and batch["segment"].max() == 1


def digest(*parts):
    """Of batches with their shares: of the whole batch that they are together."""
    return pipeline.digest(one for batch, share in parts for one in pipeline.digests(batch, share))


def test_the_digest_is_of_content_and_order():
    first, second = take(2)
    copy = {key: np.array(first[key]) for key in reversed(first)}
    own = digest((first, pipeline.WHOLE))
    assert digest((copy, pipeline.WHOLE)) == own != digest((second, pipeline.WHOLE))
    for key in first:
        changed = {k: np.array(v) for k, v in first.items()}
        changed[key].flat[0] += 1
        assert digest((changed, pipeline.WHOLE)) != own, key
    assert digest(({key: array[::-1] for key, array in first.items()}, pipeline.WHOLE)) != own


@pytest.mark.parametrize("cut", [[(0,), (1,)], [(1,), (0,)], [(0, 3), (1, 2)], [(0,), (1, 2, 3)], [(0, 1, 2, 3)]])
def test_the_digest_is_the_same_however_the_batch_was_cut(cut):
    shares = [Share(blocks, sum(map(len, cut))) for blocks in cut]
    for k, whole in enumerate(take(3, batch=8)):
        parts = [(take(3, batch=8, share=share)[k], share) for share in shares]
        assert digest(*parts) == digest((whole, pipeline.WHOLE))


class Counted:
    """An array that notes which of its elements are read."""

    def __init__(self, array):
        self.array, self.read = array, set()

    def __getitem__(self, at):
        self.read |= set(np.arange(len(self.array))[at].tolist())
        return self.array[at]


@pytest.mark.parametrize("share", [Share((1,), 2), Share((0, 3), 4)])
def test_a_process_reads_only_the_tokens_of_its_rows(share):
    alone = plan(CACHE.lengths, row_length=ROW_LENGTH, max_segments=1, seed=0)  # so that a batch is an epoch
    counted = Counted(CACHE.ids)
    held = dataclasses.replace(CACHE, ids=counted)
    options = dict(batch=alone.rows, row_length=ROW_LENGTH, share=share)
    mine = alone.examples[share.rows(alone.rows)]
    tokens_of_mine = {at for one in mine for at in range(CACHE.offsets[one], CACHE.offsets[one + 1])}
    (batch,) = pipeline.eval_batches(held, alone, **options)
    assert batch["example"].ravel().tolist() == mine.tolist() and counted.read == tokens_of_mine
    counted.read = set()
    next(pipeline.batches(held, alone, seed=0, start=3, shuffle=False, **options))
    assert counted.read == tokens_of_mine and len(tokens_of_mine) < 0.7 * len(CACHE.ids)


def test_the_data_room_does_not_import_jax():
    code = (
        "import sys, jaxft.data.pipeline, jaxft.data.tokens, jaxft.data.files, jaxft.data.docstrings, jaxft.data.tfds\n"
        "heavy = {'jax', 'torch', 'tensorflow', 'tensorflow_datasets', 'grain', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_of_groups_says_which_example_is_which_of_its_group():
    begins = np.array([0, 2, 5, 6])
    lengths = np.random.default_rng(0).integers(1, 5, 6)
    held = tokens.in_memory(
        [Example(str(n), None, n) for n in range(6)],
        lambda texts: [([int(t)] * lengths[int(t)],) * 2 + (False,) for t, _ in texts],
    )
    made = plan_groups(held.lengths, begins, row_length=ROW_LENGTH, max_groups=2, seed=1)
    (batch,) = pipeline.eval_batches(held, made, batch=4, row_length=ROW_LENGTH, share=pipeline.WHOLE)
    assert batch["group"].shape == batch["part"].shape == (4, 6)
    real = batch["example"] >= 0
    group, part = (batch[name][real] for name in ("group", "part"))
    assert np.array_equal(begins[group] + part, batch["example"][real]) and set(group) == {0, 1, 2}
    assert (batch["group"][~real] == -1).all()
