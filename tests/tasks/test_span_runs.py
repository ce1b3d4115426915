"""Questions by the real program: trained, scored, exported, read by transformers alike, predicted and evaluated."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest

from jaxft.metrics import squad
from jaxft.registry import UserError
from tests.verbs_run import READER, TINY, here, program, read_rows, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of a mean loss in float32; never loosened
LENGTH, QUESTION, STRIDE, LONGEST = 32, 4, 8, 4
VALUES = {"colour": ("red", "dark blue", "green"), "animal": ("cat", "wild dog"), "city": ("Rome", "Oslo", "New York")}
FLAGS = (
    *TINY,
    f"--config.task.question_length={QUESTION}",
    f"--config.task.stride={STRIDE}",
    f"--config.task.answer_length={LONGEST}",
    "--config.task.unanswerable=True",
    "--config.task.nbest=5",
    "--config.optim.lr=1e-2",
    "--config.train.duration=80 steps",
    "--config.train.log_every=20",
    "--config.evaluate.every=40",
    "--config.checkpoint.every=40",
)


def article(n, seed):
    """Contexts of facts, some longer than a row; a question about each of three kinds, which may have no answer."""
    rng = random.Random(seed)
    paragraphs = []
    for number in range(n):
        facts, asked = [], []
        for kind in rng.sample([*VALUES], rng.randint(1, 3)):
            value = rng.choice(VALUES[kind])
            facts += [f"the {kind} is {value}", *["it was so, they said"] * rng.choice((0, 0, 3))]
            asked.append((kind, value))
        context = ". ".join(facts) + "."
        asked += [(kind, "") for kind in VALUES if kind not in dict(asked)][: number % 4 == 0]
        qas = [
            {
                "id": f"{seed}-{number}-{kind}",
                "question": f"{kind}?",
                "answers": [{"text": value, "answer_start": context.index(f"{kind} is {value}") + len(f"{kind} is ")}]
                if value
                else [],
            }
            for kind, value in asked
        ]
        paragraphs.append({"context": context, "qas": qas})
    return {"data": [{"title": "facts", "paragraphs": paragraphs}]}


def flat(data):
    return [
        {"context": paragraph["context"], **qa}
        for one in data["data"]
        for paragraph in one["paragraphs"]
        for qa in paragraph["qas"]
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on files in the format of SQuAD."""
    folder = tmp_path_factory.mktemp("answers")
    flags = []
    for name, n in (("train", 150), ("validation", 20)):
        (folder / f"{name}.json").write_text(json.dumps(article(n, n)), encoding="utf-8")
        flags.append(f"--config.data.{name}={folder / name}.json")
    done = program("main", "--config=configs/qa.py:files", *FLAGS, *flags, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "questions about contexts longer than a row" in done.stdout
    assert 'AutoModelForQuestionAnswering.from_pretrained("' in done.stdout
    return folder / "run"


def theirs(folder, rows):
    """What transformers' own model and tokenizer make of rows.

    [(every span of at most LONGEST tokens of any window, the best first: score, begin, end; the score of no answer)],
    and the loss of each window.
    """
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    found, losses = [], []
    for row in rows:
        how = dict(truncation="only_second", max_length=LENGTH, stride=STRIDE, return_overflowing_tokens=True)
        given = tokenizer(row["question"], row["context"], **how, return_offsets_mapping=True)
        spans, none = {}, np.inf
        for i, ids in enumerate(given["input_ids"]):
            inside = [j for j, side in enumerate(given.sequence_ids(i)) if side == 1]
            offsets = given["offset_mapping"][i]
            label = labelled(row, inside, offsets)
            tensors = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([given["token_type_ids"][i]])}
            with torch.no_grad():
                out = model(**tensors, start_positions=torch.tensor([label[0]]), end_positions=torch.tensor([label[1]]))
            losses.append(out.loss.item())
            start_T, end_T = out.start_logits[0].numpy(), out.end_logits[0].numpy()
            none = min(none, start_T[0] + end_T[0])
            for first, last in itertools.product(inside, inside):
                if first <= last < first + LONGEST:
                    span = offsets[first][0], offsets[last][1]
                    spans[span] = max(spans.get(span, -np.inf), start_T[first] + end_T[last])
        found.append((sorted(((score, *span) for span, score in spans.items()), reverse=True), none))
    return found, losses


def labelled(row, inside, offsets):
    """Tokens of the answer, (0, 0) where a window does not hold it whole."""
    if not row["answers"]:
        return 0, 0
    begin = row["answers"][0]["answer_start"]
    end = begin + len(row["answers"][0]["text"])
    first = [j for j in inside if offsets[j][0] == begin]
    last = [j for j in inside if offsets[j][1] == end]
    return (first[0], last[0]) if first and last else (0, 0)


def answered(row, spans, none, threshold=0.0):
    return "" if none > spans[0][0] + threshold else row["context"][spans[0][1] : spans[0][2]]


def test_the_report_has_the_scores_of_the_exported_folder_in_transformers(run):
    rows = flat(article(20, 20))
    found, losses = theirs(run / "hf", rows)
    said = [answered(row, *one) for row, one in zip(rows, found, strict=True)]
    truth = [[answer["text"] for answer in row["answers"]] for row in rows]
    report = json.loads((run / "report.json").read_text())
    assert report["details"]["questions"] == len(rows) < report["details"]["windows"] == len(losses)
    assert report["loss"] == pytest.approx(np.mean(losses), abs=TOLERANCE)
    assert report["f1"] == pytest.approx(squad.f1(said, truth))
    assert report["exact_match"] == pytest.approx(squad.exact_match(said, truth))
    assert report["details"]["unanswerable"] == sum(not one for one in truth) > 0
    assert report["f1"] > 0.3, "a model that has learnt nothing proves little"
    card = (run / "hf" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card and "start_logits, end_logits" in card


def test_predict_says_the_answers_of_transformers_logits_and_the_next_best(run, tmp_path):
    rows = flat(article(12, 5))
    source = write_rows(
        tmp_path / "x.jsonl", [{key: row[key] for key in ("id", "context", "question")} for row in rows]
    )
    here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")
    predicted = read_rows(tmp_path / "y.jsonl")
    found, _ = theirs(run / "hf", rows)
    for row, said, (spans, none) in zip(rows, predicted, found, strict=True):
        assert said["id"] == row["id"] and said["predicted_answer"] == answered(row, spans, none)
        listed = [(one["score"], one["answer"]) for one in said["predicted_nbest"]]
        expected = [(score, row["context"][begin:end]) for score, begin, end in spans[:5]] + [(none, "")]
        np.testing.assert_allclose(
            [score for score, _ in listed], sorted((s for s, _ in expected), reverse=True), atol=1e-4
        )
        assert {text for _, text in listed} == {text for _, text in expected}
        assert sum(one["probability"] for one in said["predicted_nbest"]) == pytest.approx(1)
        if said["predicted_answer"]:
            assert row["context"][said["predicted_start"] : said["predicted_end"]] == said["predicted_answer"]
        else:
            assert said["predicted_start"] is None
    # The folder alone knows how windows are cut, and from when on there is no answer: here for half of the questions.
    shutil.copytree(run / "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    threshold = float(np.median([none - spans[0][0] for spans, none in found]))
    config["task_specific_params"]["span_qa"]["threshold"] = threshold
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    here("predict", f"--hf={tmp_path / 'hf'}", f"--input={source}", f"--output={tmp_path / 'z.jsonl'}")
    clear = [i for i, (spans, none) in enumerate(found) if abs(none - spans[0][0] - threshold) > 1e-4]
    again = read_rows(tmp_path / "z.jsonl")
    said = {i: again[i]["predicted_answer"] for i in clear}
    assert said == {i: answered(rows[i], *found[i], threshold) for i in clear} and 0 < sum(
        map(bool, said.values())
    ) < len(said)
    assert [one["predicted_nbest"] for one in again] == [one["predicted_nbest"] for one in predicted]


def test_evaluate_scores_a_file_as_the_run_did_in_chunks_of_questions(run, tmp_path, monkeypatch):
    from jaxft.inputs.windows import Reader

    monkeypatch.setattr(Reader, "most", 7)
    here("evaluate", f"--run={run}", f"--data={run.parent / 'validation.json'}", f"--output={tmp_path / 'x.json'}")
    again, report = json.loads((tmp_path / "x.json").read_text()), json.loads((run / "report.json").read_text())
    assert again["details"].keys() == report["details"].keys()
    for name in ("f1", "exact_match"):
        assert again[name] == pytest.approx(report[name])
    assert again["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)
    assert again["details"]["questions"] == report["details"]["questions"]


def test_export_verifies_every_token(run, tmp_path, capsys):
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"read by {READER}" in capsys.readouterr().out


def test_rows_that_cannot_be_used_are_told_with_their_places(run, tmp_path):
    data = article(2, 3)
    data["data"][0]["paragraphs"][0]["qas"] = [
        {"question": "colour?", "answers": [{"text": "purple", "answer_start": 0}]},
        {"question": "colour?", "answers": [{"text": "is", "answer_start": 0}]},
        {"question": "colour?", "answers": "is"},
    ]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        here("evaluate", f"--run={run}", f"--data={path}")
    assert f"{path}: question 1: the answer 'purple' is not in its context" in str(caught.value)
    assert f"{path}: question 3: answers are 'is'" in str(caught.value) and "question 2:" not in str(caught.value)


def test_a_stride_without_room_stops_the_run_with_one_message(run, tmp_path):
    flags = (f"--config.data.{name}={run.parent / name}.json" for name in ("train", "validation"))
    done = program(
        "main",
        "--config=configs/qa.py:files",
        *FLAGS,
        *flags,
        "--config.task.stride=40",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2 and "a row of 32 tokens has no room" in done.stderr and "Traceback" not in done.stderr
