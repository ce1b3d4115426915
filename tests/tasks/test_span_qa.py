"""Answers to questions: what a row may look like, windows of long contexts, the loss, and how answers are found."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data import pack, pipeline, tokens
from jaxft.data.source import Split
from jaxft.hf import tokenizer, trainers, windows
from jaxft.metrics.spans import Found
from jaxft.registry import BadRow, UserError
from jaxft.tasks import task_from_hf
from jaxft.tasks.span_qa import SpanQa

OPTIONS = dict(stride=6, question_length=8, answer_length=5, nbest=20, unanswerable=False, threshold=0.0, rules="squad")
CONTEXT = "The cat sat on the mat while the dog, unbelievably, slept in the  garden of New York."
LENGTH = 24


def task(**options):
    columns = dict(text="question", pair="context", label="answers", metric="")
    return SpanQa(**{**columns, **OPTIONS, **options})


def row(*answers, starts=None, context=CONTEXT, question="where did it sleep?"):
    starts = [context.find(text) for text in answers] if starts is None else starts
    return {"question": question, "context": context, "answers": {"text": [*answers], "answer_start": [*starts]}}


# ---- rows ----


def test_the_label_is_where_the_first_answer_stands_and_all_of_them_are_right():
    example = task().example(row("the dog", "dog"))
    assert example == ("where did it sleep?", CONTEXT, [29, 36, 0], ("the dog", "dog"))
    assert task().example(row("the dog"), labelled=False) == ("where did it sleep?", CONTEXT, None, ())


@pytest.mark.parametrize(
    ("answers", "label"),
    [
        ({"text": ["the"], "answer_start": [29]}, [29, 32, 0]),
        ({"text": ["the"], "answer_start": [30]}, [29, 32, 1]),  # the nearest of three
        ({"text": ["the"], "answer_start": [17]}, [15, 18, 1]),
        ({"text": ["the"], "answer_start": [55]}, [61, 64, 1]),
        ({"text": ["the"], "answer_start": [-5]}, [15, 18, 1]),
        ({"text": ["the"], "answer_start": [10**9]}, [61, 64, 1]),
        ({"text": ["a bird", "the mat"], "answer_start": [0, 15]}, [15, 22, 0]),  # the first that is there
        ({"text": [" the mat "], "answer_start": [14]}, [15, 22, 0]),
        ({"text": ["the mat "], "answer_start": [3]}, [15, 22, 1]),
        ([{"text": "cat", "answer_start": 4}], [4, 7, 0]),
        (["cat"], [4, 7, 0]),  # who says no place says none that is wrong
        ("dog", [33, 36, 0]),
    ],
)
def test_an_answer_is_found_where_the_row_says_or_nearest_to_it(answers, label):
    example = task().example({**row(), "answers": answers})
    assert example.label == label and CONTEXT[label[0] : label[1]].strip() == CONTEXT[label[0] : label[1]]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answers": {"text": ["a bird", "x y"], "answer_start": [0, 0]}}, "'a bird' is not in its context, nor is an"),
        ({"answers": {"text": [], "answer_start": []}}, "'answers' is empty; --config.task.unanswerable=True"),
        ({"answers": {"text": ["cat"], "answer_start": []}}, "lists of equal length"),
        ({"answers": {"text": "cat", "answer_start": 4}}, "lists of equal length"),
        ({"answers": {"text": ["cat"], "answer_start": ["4"]}}, "answer_start is '4', not a whole number"),
        ({"answers": [{"text": 7}]}, "an answer is 7, not a text"),
        ({"answers": None}, "'answers' is empty; it must be answers"),
        ({"answers": 3}, "'answers' is a int"),
        ({"context": " "}, "'context' is empty"),
        ({"question": None}, "'question' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(fields, reason):
    with pytest.raises(BadRow) as caught:
        task().example(row("cat") | fields)
    assert reason in str(caught.value)


def test_a_question_without_an_answer_is_one_where_the_task_says_so():
    example = task(unanswerable=True).example(row())
    assert example.label == [0, 0, 0] and example.answers == ()
    assert task(unanswerable=True).example(row("")).answers == (), "answers that say nothing are none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": ""}, "task.pair=''"),
        ({"stride": -1}, "task.stride=-1 must be 0 or more"),
        ({"answer_length": 0}, "task.answer_length=0 must be 1 or more"),
        ({"rules": "cmcr"}, "task.rules='cmcr' is not known; known: squad, cmrc; did you mean \"cmrc\"?"),
        ({"metric": "accuracy"}, "task.metric='accuracy' is not known here; known: f1, exact_match, loss"),
    ],
)
def test_an_option_that_cannot_be_is_one_message(options, message):
    with pytest.raises(UserError) as caught:
        task(**options)
    assert message in str(caught.value)


def test_a_missing_column_is_told_with_the_nearest_one():
    split = Split([{"question": "q", "contexts": "c", "answers": []}], "x", str)
    with pytest.raises(UserError, match=r"task.pair='context'.*did you mean \"contexts\""):
        task().fit({"train": split}, {})


def test_config_json_gives_the_task_and_its_options_back():
    made = task(unanswerable=True, threshold=-1.5, rules="cmrc")
    config = json.loads(json.dumps(made.hf_config())) | {"architectures": ["BertForQuestionAnswering"]}
    assert task_from_hf(config) == made
    assert task_from_hf(config, stride=3, text="q") == task(
        unanswerable=True, threshold=-1.5, rules="cmrc", stride=3, text="q"
    )
    foreign = task_from_hf({"architectures": ["RobertaForQuestionAnswering"], "id2label": {"0": "LABEL_0"}})
    assert (foreign.stride, foreign.answer_length, foreign.unanswerable) == (128, 30, False)
    for kept, message in (({"strides": 3}, "strides is not an option here"), ({"stride": "3"}, "stride='3' is a str")):
        with pytest.raises(UserError, match=f"config.json: task_specific_params.span_qa.{message}"):
            task_from_hf(config | {"task_specific_params": {"span_qa": kept}})
    with pytest.raises(UserError, match=r"^task\.strides is not an option here"):
        task_from_hf(config, strides=3)


# ---- windows ----


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / request.param
    trainer = {"wordpiece": trainers.wordpiece, "bpe": trainers.bpe}[request.param]
    trainer([CONTEXT, "where did it sleep?"] * 3, vocab=330, lowercase=False, folder=folder)
    return folder, tokenizer.load(folder)


def read(encoder, rows, length=LENGTH, stride=6, question=8):
    return windows.encode(encoder, rows, length, question=question, stride=stride)


def test_windows_are_those_of_transformers(encoder):
    from transformers import AutoTokenizer

    folder, ours = encoder
    theirs = AutoTokenizer.from_pretrained(folder)
    rows = [("where did it sleep?", CONTEXT), ("who?", CONTEXT * 3), ("who?", "the cat")]
    for (question, context), found in zip(rows, read(ours, rows), strict=True):
        reference = theirs(
            question,
            context,
            truncation="only_second",
            max_length=LENGTH,
            stride=6,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert [one.ids.tolist() for one in found.pieces] == reference["input_ids"] and not found.cut
        for i, one in enumerate(found.pieces):
            for chars, offset, side in zip(
                one.chars.tolist(), reference["offset_mapping"][i], reference.sequence_ids(i), strict=True
            ):
                text = context[slice(*offset)] if side == 1 else ""
                assert (context[slice(*chars)] if chars[0] >= 0 else "") == text.strip()
    assert [len(found.pieces) > 1 for found in read(ours, rows)] == [True, True, False]


def test_each_token_of_a_context_is_in_a_window_and_neighbours_share_the_stride(encoder):
    (found,) = read(encoder[1], [("who?", CONTEXT * 2)])
    held = [[tuple(span) for span in one.chars.tolist() if span[0] >= 0] for one in found.pieces]
    assert "".join((CONTEXT * 2)[b:e] for b, e in sorted({span for one in held for span in one})) == "".join(
        (CONTEXT * 2).split()
    )
    special = sum(one.ids[-1] == found.pieces[0].ids[-1] for one in found.pieces) == len(found.pieces)
    asked = int(np.flatnonzero(found.pieces[0].chars[:, 0] >= 0)[0])
    for one, following in itertools.pairwise(found.pieces):
        end = len(one.ids) - special
        np.testing.assert_array_equal(one.ids[end - 6 : end], following.ids[asked : asked + 6])


def test_too_long_a_question_is_cut_and_counted_and_no_room_is_one_message(encoder):
    _, ours = encoder
    long = "where did the unbelievably dog sleep while the cat sat on the mat in New York?"
    (found,) = read(ours, [(long, CONTEXT)], question=5)
    assert found.cut and found.counts([0, 3, 0])["cut"] == 1
    asked = [token for token, side in zip(found.pieces[0].ids, found.pieces[0].chars[:, 0], strict=True) if side < 0]
    assert 2 <= len(asked) - ours.tokenizer.num_special_tokens_to_add(True) <= 6  # one may be white space
    with pytest.raises(UserError, match=r"a row of 24 tokens has no room for a question of task.question_length=20"):
        read(ours, [(long, CONTEXT)], question=20)


def test_the_labels_of_all_windows_say_the_answer_or_the_first_token(encoder):
    """And what is cached is what is held in memory."""
    _, ours = encoder
    answers = ("The cat", "on the mat", "New York", "dog", "the  garden")
    examples = [task().example(row(answer)) for answer in answers]
    examples.append(task(unanswerable=True).example(row()))
    held = tokens.in_memory(examples, lambda texts: read(ours, texts))
    assert len(held.row) > len(examples) == held.counts["rows"] == held.counts["long"]
    said = {}
    for x, number in enumerate(held.row.tolist()):
        here = slice(held.offsets[x], held.offsets[x + 1])
        tag_T, chars_T2 = held.tags[here], held.chars[here]
        first, last = (int(np.flatnonzero((tag_T > 0) & (tag_T & bit > 0))[0]) for bit in (1, 2))
        assert (tag_T > 0).sum() == len({first, last})
        if first or last:
            said.setdefault(number, set()).add(CONTEXT[chars_T2[first, 0] : chars_T2[last, 1]])
        else:
            said.setdefault(number, set())
    assert [*said.values()] == [{answer} for answer in answers] + [set()]
    assert held.counts["missed"] == held.counts["moved"] == 0


def test_an_answer_that_no_window_holds_is_counted(encoder):
    whole = CONTEXT * 2
    example = task().example(row(whole[4:-5], context=whole))
    assert tokens.in_memory([example], lambda texts: read(encoder[1], texts)).counts["missed"] == 1


def test_a_cache_on_disk_is_that_in_memory(encoder, tmp_path):
    rows = [row("New York"), row("cat", starts=[5]), row("a bird", starts=[0]), row("dog", context="a dog")]
    split = Split(rows, "rows", lambda i: f"x.json:{i + 1}")
    args = dict(key={}, folder=str(tmp_path), on_bad="skip")
    held = tokens.build(split, task().example, lambda texts: read(encoder[1], texts), **args)
    good = [rows[0], rows[1], rows[3]]
    memory = tokens.in_memory([task().example(one) for one in good], lambda texts: read(encoder[1], texts))
    for name in ("ids", "types", "offsets", "tags", "chars"):
        np.testing.assert_array_equal(getattr(held, name), getattr(memory, name))
    assert set(held.row.tolist()) == {0, 1, 3} and held.bad == (
        ("x.json:3", "the answer 'a bird' is not in its context"),
    )
    assert {name: held.counts[name] for name in ("rows", "kept", "bad", "long", "moved")} == {
        **{"rows": 4, "kept": 3, "bad": 1},
        **{"long": 2, "moved": 1},
    }


# ---- loss ----


def batches(encoder, examples, most, length=2 * LENGTH, rows=4):
    held = tokens.in_memory(examples, lambda texts: read(encoder, texts))
    plan = pack.plan(held.lengths, row_length=length, max_segments=most, seed=0)
    return [*pipeline.eval_batches(held, plan, batch=rows, row_length=length, share=pipeline.WHOLE)]


def questions(n=12, seed=0):
    rng = np.random.default_rng(seed)
    words = CONTEXT.split()
    answers = [" ".join(words[i : i + k]) for i, k in zip(rng.integers(0, 9, n), rng.integers(1, 3, n), strict=True)]
    return [task().example(row(answer, context=CONTEXT * (1 + i % 2))) for i, answer in enumerate(answers)]


def logits_of(batch, vocab):
    """Of a token, its place in the segment and its label alone: packing cannot change them."""
    rng = np.random.default_rng(5)
    of_token, of_place = rng.normal(size=(vocab, 2)), rng.normal(size=(LENGTH, 2))
    hint_BL2 = (batch["label"] > 0)[..., None] & (batch["label"][..., None] & np.array([1, 2]) > 0)
    return jnp.asarray(of_token[batch["ids"]] + of_place[batch["position"]] + 2 * hint_BL2, jnp.float32)


def test_packed_rows_have_the_loss_and_the_scores_of_unpacked_ones(encoder):
    _, ours = encoder
    examples, reports = questions(), []
    for most in (1, 3):
        meter = task().meter()
        meter.tell(examples)
        for batch in batches(ours, examples, most):
            logits_BLC = logits_of(batch, ours.vocab_size)
            seen = {name: np.asarray(value) for name, value in task().seen(logits_BLC, batch).items()}
            meter.update(task().loss(logits_BLC, batch), seen)
        reports.append(meter.report())
    assert batch["example"].shape[1] == 3 and (batch["example"] >= 0).sum(1).max() > 1
    assert reports[0]["questions"] == 12 and reports[0]["windows"] > 12 and 0 < reports[0]["f1"] < 1
    assert reports[0] == pytest.approx(reports[1], rel=1e-5)


def test_the_loss_is_that_of_transformers(encoder):
    torch = pytest.importorskip("torch", reason="transformers' losses need torch")
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertForQuestionAnswering

    _, ours = encoder
    (batch,) = batches(ours, questions(), most=1, length=LENGTH, rows=64)
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = BertForQuestionAnswering(BertConfig(**sizes, vocab_size=ours.vocab_size)).eval()
    used = np.flatnonzero(batch["example"][:, 0] >= 0)
    positions = {}
    for name, bit in (("start_positions", 1), ("end_positions", 2)):
        right_BL = (batch["label"] > 0) & (batch["label"] & bit > 0)
        positions[name] = torch.tensor(right_BL[used].argmax(1))
    given = {
        "input_ids": torch.tensor(batch["ids"][used]).long(),
        "attention_mask": torch.tensor(batch["segment"][used]),
    }
    # transformers takes the softmax over padding, too: its logits are sunk here.
    model.qa_outputs.forward = sink(torch, model.qa_outputs.forward, batch["segment"][used])
    with torch.no_grad():
        out = model(**given, token_type_ids=torch.tensor(batch["type"][used]).long(), **positions)
    logits = np.zeros((*batch["ids"].shape, 2), np.float32)
    logits[used] = torch.stack((out.start_logits, out.end_logits), -1).numpy()
    total, weight = task().loss(jnp.asarray(logits), batch)["loss"]
    assert weight == len(used) and float(total / weight) == pytest.approx(out.loss.item(), abs=1e-5)


def sink(torch, forward, segment):
    return lambda x: forward(x).masked_fill(torch.tensor(segment == 0)[..., None], -1e9)


def test_what_holds_no_label_changes_neither_loss_nor_gradient(encoder):
    _, ours = encoder
    labelled = questions(3)
    blind = [one._replace(label=None) for one in questions(3, seed=1)]
    (batch,) = batches(ours, labelled + blind, most=3, rows=16)
    nothing_BL = batch["segment"] == 0
    for at, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        inside_L = batch["segment"][at] == slot + 1
        nothing_BL[at, inside_L] = not (batch["label"][at, inside_L] > 0).any()
    assert 0 < nothing_BL[batch["segment"] > 0].sum() < (batch["segment"] > 0).sum()
    logits_BLC = logits_of(batch, ours.vocab_size)
    dirty_BLC = jnp.where(nothing_BL[..., None], jnp.nan, logits_BLC)
    for name, (total, weight) in task().loss(logits_BLC, batch).items():
        found = task().loss(dirty_BLC, batch)[name]
        assert (float(found[0]), float(found[1])) == (float(total), float(weight)) and weight > 0
    gradient_BLC = jax.grad(lambda x: task().loss(x, batch)["loss"][0])(dirty_BLC)
    assert np.isfinite(gradient_BLC).all() and (np.asarray(gradient_BLC)[nothing_BL] == 0).all()
    assert np.abs(np.asarray(gradient_BLC)[~nothing_BL]).min() > 0


# ---- answers ----


def by_hand(windows_, longest):
    """(score, span) of every span of every window, the best first, by trying them all."""
    best = {}
    for logits_T2, chars_T2 in windows_:
        for i, j in itertools.combinations_with_replacement(range(len(chars_T2)), 2):
            if j - i < longest and chars_T2[i, 0] >= 0 and chars_T2[j, 0] >= 0:
                span = int(chars_T2[i, 0]), int(chars_T2[j, 1])
                best[span] = max(best.get(span, -np.inf), float(logits_T2[i, 0]) + float(logits_T2[j, 1]))
    return sorted(((score, span) for span, score in best.items()), key=lambda one: (-one[0], one[1]))


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_answers_are_those_of_all_spans_of_all_windows(longest):
    rng = np.random.default_rng(longest)
    pieces = []
    for begin in (0, 6, 12):  # three windows that share half of their tokens
        chars_T2 = np.full((15, 2), -1, np.int32)
        chars_T2[3:14, 0] = np.arange(begin, begin + 11) * 3
        chars_T2[3:14, 1] = chars_T2[3:14, 0] + 2
        chars_T2[7] = -1  # a token of white space
        pieces.append((rng.normal(size=(15, 2)).astype(np.float32), chars_T2))
    found = Found(longest, 20)
    for one in pieces:
        found.add(*one)
    context = "".join(chr(97 + i % 26) for i in range(80))
    expected = by_hand(pieces, longest)[:20]
    listed = found.answers(context, nothing=False)
    assert [(one["start"], one["end"]) for one in listed] == [span for _, span in expected]
    np.testing.assert_allclose([one["score"] for one in listed], [score for score, _ in expected], rtol=1e-6)
    share = np.exp([score for score, _ in expected]) / np.exp([score for score, _ in expected]).sum()
    np.testing.assert_allclose([one["probability"] for one in listed], share, rtol=1e-6)
    assert all(one["answer"] == context[one["start"] : one["end"]] for one in listed)
    # No answer scores as the least that a first token does.
    none = min(float(logits_T2[0].sum()) for logits_T2, _ in pieces)
    assert found.margin == pytest.approx(none - expected[0][0], rel=1e-6)
    assert found.text(context, nothing=False, threshold=-99) == listed[0]["answer"]
    assert found.text(context, nothing=True, threshold=found.margin) == listed[0]["answer"]
    assert found.text(context, nothing=True, threshold=found.margin - 1e-6) == ""


def test_logits_that_are_no_numbers_and_windows_without_a_context_answer_nothing():
    found = Found(3, 5)
    found.add(np.zeros((4, 2), np.float32), np.full((4, 2), -1))
    found.add(np.full((4, 2), np.nan, np.float32), np.array([[-1, -1], [0, 1], [1, 2], [-1, -1]]))
    assert found.text("ab", nothing=False, threshold=0.0) == ""
    assert [one["answer"] for one in found.answers("ab", nothing=False)] == [""]


def test_questions_without_an_answer_are_scored_apart():
    chars_T2 = np.array([[-1, -1], [0, 3], [4, 7], [-1, -1]], np.int32)
    asked = task(unanswerable=True, threshold=1.0)
    contexts = [("the cat", ("cat",)), ("the dog", ()), ("the cow", ()), ("the hen", ("hen",))]
    meter = asked.meter()
    meter.tell([asked.example(row(*answers, context=context)) for context, answers in contexts])
    logits_B2 = [(0.0, 5.0), (6.5, 5.0), (6.0, 5.0), (9.0, 5.0)]  # of no answer, of the best one
    for number, (none, best) in enumerate(logits_B2):
        logits_T2 = np.array([[none, 0], [0, 0], [best, 0], [0, 0]], np.float32)
        seen = {"logits": logits_T2[None], "chars": chars_T2[None], "segment": np.array([[1, 1, 1, 1]])}
        seen |= {"example": np.array([[number]]), "row": np.array([[number]])}
        meter.update({"loss": (1.0, 1.0)}, seen)
    report = meter.report()
    # cat: right. dog: none, by more than the threshold: right. cow: not by more: wrong. hen: none: wrong.
    assert report["exact_match"] == report["f1"] == 0.5 and report["unanswerable"] == 2
    assert report["answerable_f1"] == report["unanswerable_right"] == 0.5
    assert meter.result().keys() == {"loss", "f1", "exact_match"} and json.loads(json.dumps(report)) == report
    assert meter.table().isascii()


def test_predictions_say_the_answer_its_place_and_the_next_best():
    found = Found(5, 20)
    found.add(np.array([[0, 0], [1, 0], [3, 2], [0, 0]], np.float32), np.array([[-1, -1], [0, 3], [4, 7], [-1, -1]]))
    (said,) = task(nbest=20).predictions([found], [{"question": "q", "context": "the cat"}])
    assert (said["answer"], said["start"], said["end"], said["score"]) == ("cat", 4, 7, 5.0)
    assert [one["answer"] for one in said["nbest"]] == ["cat", "the cat", "the"]
    assert sum(one["probability"] for one in said["nbest"]) == pytest.approx(1) and json.loads(json.dumps(said)) == said
    (none,) = task(unanswerable=True, threshold=-9.0).predictions([found], [{"question": "q", "context": "the cat"}])
    assert (none["answer"], none["start"], none["score"]) == ("", None, 0.0) and len(none["nbest"]) == 4


def test_rows_of_tfds_have_the_form_of_flat_files(tmp_path):
    import tensorflow_datasets as tfds

    from jaxft.data.tfds import dataset

    class Asked(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012

        def _info(self):
            text = tfds.features.Text()
            answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
            columns = {"id": text, "context": text, "question": text, "answers": answers}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"id": str(i), **row(*["cat"] * i)}) for i in range(3))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Asked(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    data = dataset("asked", builder, {"train": "train"})
    fitted = task(unanswerable=True).fit(data.splits, data.label_names)
    by_id = {one["id"]: fitted.example(one) for one in data.splits["train"].rows}
    assert by_id["2"] == task().example(row("cat", "cat")) and by_id["0"].answers == ()
