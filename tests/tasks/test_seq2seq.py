"""Pairs of texts: packed rows, what the decoder reads, losses of transformers, and what is refused."""

import sys
import types

import jax
import numpy as np
import pytest

from jaxft.data import pairs, tokens
from jaxft.data.pairs import Pairs
from jaxft.data.source import Split
from jaxft.labels import NO_LABEL
from jaxft.models import bart, marian, t5
from jaxft.registry import BadRow, UserError
from jaxft.tasks.seq2seq import Seq2Seq
from tests.generation import hub

TOLERANCE = 1e-5  # of a mean loss; never loosened
FAMILIES = {"t5": t5, "bart": bart, "marian": marian}
START, LENGTH, TARGET_LENGTH = 3, 24, 18
LENGTHS = ((5, 7), (11, 3), (2, 2), (24, 6), (4, 18), (8, 8), (3, 4))  # of sources and their targets
OPTIONS = dict(
    source="de",
    target="en",
    prefix="",
    metric="",
    smoothing=0.0,
    target_length=TARGET_LENGTH,
    too_long="cut",
    write=0,
    write_last=0,
    beams=1,
    max_new_tokens=8,
    tokenize="13a",
)


def task(**options):
    return Seq2Seq(**OPTIONS | options)


def held(rows):
    """A token cache of these ids."""
    examples = [types.SimpleNamespace(text=ids, pair=None, label=None) for ids in rows]
    return tokens.in_memory(examples, lambda texts: [(ids, np.zeros(len(ids), int), False) for ids, _ in texts])


def made(max_segments, start=START, vocab=99):
    rng = np.random.default_rng(0)
    sources, targets = ([rng.integers(4, vocab, lengths[side]) for lengths in LENGTHS] for side in (0, 1))
    caches = held(sources), held(targets)
    plan = pairs.plan(
        *(cache.lengths for cache in caches),
        length=LENGTH,
        target_length=TARGET_LENGTH,
        max_segments=max_segments,
        seed=0,
    )
    return Pairs(*caches, plan, LENGTH, TARGET_LENGTH, start), sources, targets


def test_rows_hold_whole_pairs_segment_by_segment():
    packed, sources, targets = made(4)
    assert packed.plan.rows < len(LENGTHS), "some share a row"
    batch = packed.assemble(np.arange(packed.plan.rows))
    seen = []
    for row, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        example = batch["example"][row, slot]
        inside, answer = batch["segment"][row] == slot + 1, batch["target_segment"][row] == slot + 1
        assert batch["ids"][row][inside].tolist() == sources[example].tolist()
        assert batch["label"][row][answer].tolist() == targets[example].tolist()
        assert batch["target_ids"][row][answer].tolist() == [START, *targets[example][:-1]]
        for position, there in (("position", inside), ("target_position", answer)):
            assert batch[position][row][there].tolist() == list(range(there.sum()))
        seen.append(int(example))
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert (batch["label"] == NO_LABEL).tolist() == (batch["target_segment"] == 0).tolist()
    assert (batch["weight"] == (batch["target_segment"] > 0)).all()


def test_a_row_never_holds_more_than_either_side_has_room_for():
    rng = np.random.default_rng(1)
    for length, target_length in ((64, 64), (100, 17), (30, 200)):
        source_X, target_X = rng.integers(1, length + 1, 500), rng.integers(1, target_length + 1, 500)
        plan = pairs.plan(source_X, target_X, length=length, target_length=target_length, max_segments=50, seed=0)
        assert sorted(plan.examples) == list(range(500))
        for lengths, room in ((source_X, length), (target_X, target_length)):
            assert np.add.reduceat(lengths[plan.examples], plan.offsets[:-1]).max() <= room


def test_pairs_of_which_one_side_does_not_fit_are_left_out_of_the_plan():
    plan = pairs.plan(np.array([5, 11, 5]), np.array([4, 4, 9]), length=10, target_length=8, max_segments=3, seed=0)
    assert plan.examples.tolist() == [0]


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_transformers_packed_or_not(name, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from transformers.trainer_pt_utils import LabelSmoother

    family = FAMILIES[name]
    model = hub.model_of(name, family.TINY, tmp_path)
    net, params = hub.network(name, tmp_path)

    @jax.jit
    def losses(params, batch):
        with net.tracing():
            logits, _ = net.forward_with_losses(params, batch, None)
            return [task(smoothing=smoothing).loss(logits, batch)["loss"] for smoothing in (0.0, 0.1)]

    found = {}
    for segments in (1, 4):
        packed, sources, targets = made(segments, family.TINY.start_id, family.TINY.vocab)
        batch = packed.assemble(np.arange(packed.plan.rows))
        found[segments] = [float(total / weight) for total, weight in losses(params, batch)]
    pad = model.config.pad_token_id
    ids, labels = np.full((len(sources), LENGTH), pad), np.full((len(sources), TARGET_LENGTH), NO_LABEL)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        ids[row, : len(source)], labels[row, : len(target)] = source, target
    mask = np.arange(LENGTH) < np.array([[len(source)] for source in sources])
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long(), labels=torch.tensor(labels))
        wanted = [out.loss.item(), LabelSmoother(0.1)(out, torch.tensor(labels)).item()]
    assert found[1] == pytest.approx(wanted, abs=TOLERANCE)
    assert found[4] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "bleu"}, r"task\.metric='bleu' is a score of texts: set task\.write above 0"),
        ({"metric": "blue"}, r'task\.metric=\'blue\' is not known.*did you mean "bleu"'),
        ({"source": ""}, r"task\.source='' must name a column"),
        ({"smoothing": 1.0}, r"task\.smoothing=1\.0 must be at least 0 and below 1"),
        ({"write": -2}, r"task\.write=-2 must be at least -1"),
        ({"beams": 0}, r"task\.beams=0 must be at least 1"),
        ({"max_new_tokens": 0}, r"task\.max_new_tokens=0 must be at least 1"),
        ({"too_long": "keep"}, r'task\.too_long=\'keep\' must be "cut" or "drop"'),
        ({"write": 5, "tokenize": "moses"}, r"task\.tokenize='moses' is not known to sacrebleu; known: .*13a"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task(**options)


def test_who_asks_for_scores_is_told_which_extra_has_them_and_who_does_not_needs_none(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge_score" else real(name))
    with pytest.raises(UserError, match=r"needs rouge_score for the scores; pip install 'jaxft\[metrics\]'"):
        task(write=5)
    assert task().metric == "loss"


def test_scores_are_imported_only_where_they_are_asked_for():
    import subprocess

    code = (
        "import sys; from tests.tasks.test_seq2seq import task; task(); "
        "assert not {'sacrebleu', 'rouge_score'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_may_be_fields_of_a_column_and_bad_rows_say_why():
    nested = task(source="translation.de", target="translation.en", prefix="x: ")
    example = nested.example({"translation": {"de": "ein Hund", "en": "a dog"}})
    assert (example.text, example.pair) == ("x: ein Hund", "a dog")
    assert nested.example({"translation": {"de": "a"}}, labelled=False).pair is None
    assert task(source="a.b").example({"a.b": "x", "en": 1984}) == ("x", "1984", None)
    for row, message in (
        ({"de": "x"}, "no column 'en'"),
        ({"de": " ", "en": "x"}, "'de' is empty"),
        ({"de": "x", "en": None}, "'en' is empty"),
        ({"de": ["x"], "en": "x"}, "'de' is a list, not text"),
    ):
        with pytest.raises(BadRow, match=message):
            task().example(row)
    with pytest.raises(BadRow, match=r"'translation\.de' is empty"):
        nested.example({"translation": "x"})
    with pytest.raises(BadRow, match="no column 'de'"):
        nested.example({"translation": {"en": "x"}})


def test_a_column_that_is_not_there_is_refused():
    splits = {"train": Split([{"de": "x", "eng": "y"}], "", str)}
    with pytest.raises(UserError, match=r"task\.target='en': the train split has no such column; columns: de, eng"):
        task().fit(splits, {})
    assert task(target="eng.text").fit(splits, {}).target == "eng.text"
