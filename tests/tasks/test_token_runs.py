"""Tags of words by the real program: trained, scored, exported, read by transformers alike, predicted and evaluated."""

import json
import random

import numpy as np
import pytest

from jaxft.registry import UserError
from tests.verbs_run import READER, TINY, here, program, read_rows, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of a mean loss in float32; never loosened
NAMES = {"PER": ("Ann", "Bob", "Eve"), "LOC": ("Rome", "Oslo")}
LENGTH = 32
FLAGS = (
    *TINY,
    "--config.optim.lr=1e-2",
    "--config.train.duration=60 steps",
    "--config.train.log_every=20",
    "--config.evaluate.every=30",
    "--config.checkpoint.every=30",
)


def sentences(n, seed):
    """(words, tags): a name is one of a person behind "with", of a place behind "in"; some are longer than a row."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        words, tags = [], []
        for _ in range(rng.choice((1, 2, 3, 20))):
            kind = rng.choice(list(NAMES))
            name = rng.choices(NAMES[kind], k=rng.randint(1, 2))
            words += ["she", "was", {"PER": "with", "LOC": "in"}[kind], *name]
            tags += ["O"] * 3 + [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1)
        made.append((words, tags))
    return made


def conll(path, made):
    text = "".join("".join(f"{w}\t{t}\n" for w, t in zip(*one, strict=True)) + "\n" for one in made)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on CoNLL files."""
    folder = tmp_path_factory.mktemp("tags")
    files = {name: conll(folder / f"{name}.conll", sentences(n, n)) for name, n in (("train", 150), ("validation", 40))}
    flags = [f"--config.data.{name}={path}" for name, path in files.items()]
    done = program("main", "--config=configs/ner.py:files", *FLAGS, *flags, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "words lost, which are not scored" in done.stdout
    return folder / "run"


def theirs(run, words):
    """[words read, C] of transformers for one sentence, and the numbers of these words."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    model = AutoModelForTokenClassification.from_pretrained(run / "hf").eval()
    logits, numbers = [], []
    for one in words:
        given = tokenizer(one, is_split_into_words=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        of = given.word_ids()
        known = [i for i in range(len(of)) if of[i] is not None and of[i] != of[i - 1]]
        with torch.no_grad():
            logits.append(model(**given).logits[0, known].numpy())
        numbers.append([of[i] for i in known])
    return model.config.id2label, logits, numbers


def test_the_report_has_the_scores_of_the_exported_folder_in_transformers(run):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    pytest.importorskip("seqeval", reason="the reference of entity scores")
    from seqeval.metrics import f1_score

    made = sentences(40, 40)
    names, logits, numbers = theirs(run, [words for words, _ in made])
    truth = [[tags[i] for i in at] for (_, tags), at in zip(made, numbers, strict=True)]
    found = [[names[i] for i in one.argmax(-1)] for one in logits]
    report = json.loads((run / "report.json").read_text())
    ids = {name: i for i, name in names.items()}
    label_W = torch.tensor([ids[tag] for one in truth for tag in one])
    loss = torch.nn.functional.cross_entropy(torch.tensor(np.concatenate(logits)), label_W)
    assert report["loss"] == pytest.approx(loss.item(), abs=TOLERANCE)
    assert report["f1"] == pytest.approx(f1_score(truth, found)) and report["f1"] > 0.8
    assert report["details"]["words"] == len(label_W)
    assert report["details"]["words_lost"] == sum(len(tags) for _, tags in made) - len(label_W) > 0
    assert {row["label"] for row in report["details"]["classes"]} == {"PER", "LOC"}
    page, card = (run / "report.html").read_text(), (run / "hf" / "README.md").read_text()
    assert ">PER<" in page and "pipeline_tag: token-classification" in card and "B-PER" in card


def test_evaluate_scores_labelled_files_as_the_run_did(run, tmp_path, capsys):
    here("evaluate", f"--run={run}", f"--data={run.parent / 'validation.conll'}", f"--output={tmp_path / 'x.json'}")
    again, report = json.loads((tmp_path / "x.json").read_text()), json.loads((run / "report.json").read_text())
    assert "strict_f1" in capsys.readouterr().out
    for name in ("f1", "accuracy", "strict_f1"):
        assert again[name] == report[name]
    assert again["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)
    assert again["details"]["words_lost"] == report["details"]["words_lost"]


def test_predict_takes_words_and_says_the_tags_of_each(run, tmp_path):
    made = sentences(20, 7)
    source = write_rows(tmp_path / "x.jsonl", [{"id": i, "tokens": words} for i, (words, _) in enumerate(made)])
    here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")
    rows = read_rows(tmp_path / "y.jsonl")
    names, logits, numbers = theirs(run, [words for words, _ in made])
    for row, (words, _), logits_WC, at in zip(rows, made, logits, numbers, strict=True):
        expected = [None] * len(words)
        for place, best in zip(at, logits_WC.argmax(-1), strict=True):
            expected[place] = names[int(best)]
        assert row["predicted_tags"] == expected
        for entity in row["predicted_entities"]:
            assert entity["text"] == " ".join(words[entity["start"] : entity["end"]])
    assert any(row["predicted_entities"] for row in rows)
    assert any(None in row["predicted_tags"] for row in rows), "words that were cut off have no tag"


def test_predict_takes_plain_text_and_says_where_in_it_entities_are(run, tmp_path):
    text = "she was with Ann,  she was in Oslo"
    (tmp_path / "x.txt").write_text(text + "\n", encoding="utf-8")
    here("predict", f"--run={run}", "--text=text", f"--input={tmp_path / 'x.txt'}", f"--output={tmp_path / 'y.jsonl'}")
    (row,) = read_rows(tmp_path / "y.jsonl")
    assert row["predicted_words"] == ["she", "was", "with", "Ann", ",", "she", "was", "in", "Oslo"]
    found = {(entity["label"], entity["text"]) for entity in row["predicted_entities"]}
    assert ("PER", "Ann") in found and ("LOC", "Oslo") in found
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in row["predicted_entities"])


def test_export_verifies_every_token(run, tmp_path, capsys):
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"read by {READER}" in capsys.readouterr().out


def test_rows_that_cannot_be_used_are_told_with_their_places(run, tmp_path):
    path = tmp_path / "bad.conll"
    path.write_text("she\tO\n\nAnn\tB-PRE\n\nwas O O\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        here("evaluate", f"--run={run}", f"--data={path}")
    assert "2 of 3 rows cannot be used" in str(caught.value)
    assert f"{path}:3: label 'B-PRE' is not one of the 5 classes; did you mean \"B-PER\"?" in str(caught.value)
    assert f"{path}:5: line 1 of the sentence has 3 columns" in str(caught.value)


def test_a_tag_that_only_the_validation_split_has_stops_the_run_with_its_place(tmp_path):
    train = conll(tmp_path / "train.conll", sentences(20, 0))
    wrong = conll(tmp_path / "dev.conll", [(["she", "x"], ["O", "B-ORG"])])
    flags = (f"--config.data.train={train}", f"--config.data.validation={wrong}", f"--workdir={tmp_path / 'run'}")
    done = program("main", "--config=configs/ner.py:files", *FLAGS, *flags)
    assert done.returncode == 2 and f"{wrong}:1: label 'B-ORG' is not one of the 5 classes" in done.stderr
