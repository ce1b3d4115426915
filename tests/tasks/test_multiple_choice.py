"""Multiple choice: what a row may look like, the loss over choices, and the real program against transformers."""

import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.registry import BadRow, UserError
from jaxft.tasks.multiple_choice import MultipleChoice
from tests.verbs_run import LENGTH, TINY, here, program, read_rows, write_rows

TOLERANCE = 1e-5  # of a mean loss in float32; never loosened
TASK = MultipleChoice(text="question", stem="", choices="choices", label="label", metric="")
ROW = {"question": "q", "choices": ["x", "y", "z"], "label": 1}
COLOURS, SHAPES = ("red", "blue", "green"), ("round", "square", "long", "flat")


def test_each_choice_is_a_pair_with_the_question_and_the_right_one_has_the_label():
    for label in (1, "1", "B", "y"):
        assert TASK.example({**ROW, "label": label}) == [("q", "x", 0), ("q", "y", 1), ("q", "z", 0)]
    assert [one.label for one in TASK.example({"question": "q", "choices": ["x", "y"]}, labelled=False)] == [0, 0]


def test_choices_may_stand_in_columns_of_their_own_and_have_a_common_beginning():
    task = MultipleChoice(text="context", stem="begin", choices="a, b", label="label", metric="")
    made = task.example({"context": "c", "begin": "they", "a": "run", "b": "sit", "label": 0})
    assert made == [("c", "they run", 1), ("c", "they sit", 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "none of the 3 choices"),
        ({"label": -1}, "none of the 3 choices"),
        ({"label": "w"}, "'label' is 'w'"),
        ({"label": True}, "'label' is True"),
        ({"label": None}, "'label' is None"),
        ({"choices": ["x"]}, "two are the least"),
        ({"choices": "x"}, "must be a list of texts"),
        ({"choices": ["x", " "]}, "choice 1 of 'choices' is empty|is a str"),
        ({"choices": ["x", "x"], "label": "x"}, "more than one of the choices"),
        ({"choices": ["12", "3", "4", "2"], "label": "3"}, "more than one of the choices"),
        ({"choices": ["B", "C", "D", "A"], "label": "A"}, "more than one of the choices"),
        ({"question": ""}, "'question' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(change, message):
    with pytest.raises(BadRow, match=message):
        TASK.example({**ROW, **change})


def test_a_missing_column_and_no_column_are_user_errors():
    with pytest.raises(UserError, match=r"task\.choices=''"):
        MultipleChoice(text="question", stem="", choices="", label="label", metric="")
    from jaxft.data.source import Split

    with pytest.raises(UserError, match=r"task\.choices='choices'.*no such column.*did you mean \"chioces\""):
        TASK.fit({"train": Split([{"question": "q", "chioces": [], "label": 0}], "x", str)}, {})


def packed():
    """(logits [2, 5, 1], batch): questions of three and two choices in a row, one of four in another."""
    logits_BSC = np.random.default_rng(0).normal(size=(2, 5, 1)).astype(np.float32)
    group_BS = np.array([[0, 0, 0, 1, 1], [2, 2, 2, 2, -1]], np.int32)
    label_BS = np.array([[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]], np.int32)
    return logits_BSC, {"group": group_BS, "label": label_BS, "weight": (group_BS >= 0).astype(np.float32)}


def test_the_loss_is_the_cross_entropy_over_the_choices_of_each_question():
    logits_BSC, batch = packed()
    x = logits_BSC[..., 0]
    questions = [(x[0, :3], 2), (x[0, 3:], 0), (x[1, :4], 1)]
    sums = TASK.loss(jnp.asarray(logits_BSC), batch)
    losses = [np.log(np.exp(of).sum()) - of[right] for of, right in questions]
    np.testing.assert_allclose(sums["loss"], (sum(losses), 3), rtol=1e-6)
    assert tuple(map(float, sums["accuracy"])) == (sum(of.argmax() == right for of, right in questions), 3)


def test_what_an_empty_slot_holds_changes_neither_loss_nor_gradient():
    logits_BSC, batch = packed()
    clean = TASK.loss(jnp.asarray(logits_BSC), batch)
    dirty_BSC = jnp.asarray(logits_BSC).at[1, 4].set(jnp.nan)
    assert jax.tree.map(float, TASK.loss(dirty_BSC, batch)) == jax.tree.map(float, clean)
    gradient_BSC = jax.grad(lambda x: TASK.loss(x, batch)["loss"][0])(dirty_BSC)
    assert np.isfinite(gradient_BSC).all() and gradient_BSC[1, 4] == 0


def questions(n, seed):
    """Which ball is named: "the red round ball" among others; two to four choices, some longer than a row."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        named = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        choices = rng.sample(named, rng.randint(2, 4))
        right = rng.randrange(len(choices))
        filler = " ".join(rng.choices(("and", "then", "so"), k=rng.choice((1, 5, 40))))
        rows.append({"id": i, "question": f"take {choices[right]} {filler}", "choices": choices, "label": right})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    files = {name: write_rows(folder / f"{name}.jsonl", questions(n, n)) for name, n in (("train", 200), ("test", 40))}
    flags = [f"--config.data.train={files['train']}", f"--config.data.validation={files['test']}"]
    flags += ["--config.optim.lr=3e-3", "--config.train.duration=40 steps", "--config.evaluate.every=20"]
    done = program("main", "--config=configs/choice.py:files", *TINY, *flags, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rows of {4 * LENGTH} tokens" in done.stdout and "texts cut to 32 tokens" in done.stdout
    assert re.search(r"about \d+ examples of [23]\.\d texts each", done.stdout), "questions, and their choices"
    return folder / "run"


def theirs(run, rows):
    """The logits [choices] that transformers gives each row."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    model = AutoModelForMultipleChoice.from_pretrained(run / "hf").eval()
    found = []
    for row in rows:
        asked = [row["question"]] * len(row["choices"])
        given = tokenizer(asked, row["choices"], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**{name: x[None] for name, x in given.items()}).logits[0].numpy())
    return found


def test_the_report_has_the_scores_of_the_exported_folder_in_transformers(run):
    rows = questions(40, 40)
    logits = theirs(run, rows)
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"] == np.mean([x.argmax() == row["label"] for x, row in zip(logits, rows, strict=True)])
    losses = [np.log(np.exp(x).sum()) - x[row["label"]] for x, row in zip(logits, rows, strict=True)]
    assert report["loss"] == pytest.approx(np.mean(losses), abs=TOLERANCE)
    assert report["details"]["questions"] == 40
    assert "pipeline_tag: multiple-choice" in (run / "hf" / "README.md").read_text()


def test_predict_evaluate_and_export_agree_with_the_report(run, tmp_path, capsys):
    rows = questions(40, 40)
    source = write_rows(tmp_path / "x.jsonl", rows)
    here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")
    for row, logits in zip(read_rows(tmp_path / "y.jsonl"), theirs(run, rows), strict=True):
        assert row["predicted_choice"] == logits.argmax()
        assert row["predicted_text"] == row["choices"][row["predicted_choice"]]
        np.testing.assert_allclose(row["predicted_probabilities"], np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    report = json.loads((run / "report.json").read_text())
    here("evaluate", f"--hf={run / 'hf'}", f"--data={source}", f"--output={tmp_path / 'scores.json'}")
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again["accuracy"] == report["accuracy"] and again["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)
    here("export", f"--run={run}", f"--out={tmp_path / 'out'}", "--verify")
    assert "verified" in capsys.readouterr().out
