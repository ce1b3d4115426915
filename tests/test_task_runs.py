"""The tasks other than cls (test_verbs.py) by the real program: trained, exported, read by transformers, scored."""

import json
import random

import numpy as np
import pytest

from jaxft.tasks import task_from_hf
from tests.verbs_run import READER, ROOT, WORDS, here, read_rows, reviews, train, transformers_logits, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # float32; never loosened
STSB = ROOT.parent / "shared" / "data" / "stsb-en-zh" / "en-dev.tsv"


def pairs(folder):
    """Do both texts have the same mood? The matrix products are in bfloat16."""
    one, other = reviews(120, 0), reviews(120, 1)
    rows = [
        {"premise": a["text"][:80], "hypothesis": b["text"][:80], "same": a["label"] == b["label"]}
        for a, b in zip(one, other, strict=True)
    ]
    columns = ("text=premise", "pair=hypothesis", "label=same")
    flags = [f"--config.task.{column}" for column in columns]
    return write_rows(folder / "x.jsonl", rows), [*flags, "--config.task.name=pair", "--config.model.dtype=bfloat16"]


def scores(folder):
    """STS-B where the data folder has it, else the words in common. The moving average of the weights is exported."""
    if STSB.exists():
        lines = STSB.read_text(encoding="utf-8").splitlines()[:121]
    else:
        made = zip(reviews(120, 0), reviews(120, 1), strict=True)
        shared = ((a["text"], b["text"], len({*a["text"].split()} & {*b["text"].split()})) for a, b in made)
        lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, row)) for row in shared)]
    (folder / "x.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = ("text=sentence1", "pair=sentence2", "label=score")
    return folder / "x.tsv", [*(f"--config.task.{column}" for column in columns), "--config.train.ema=0.9"]


def moods(folder):
    """Any number of labels, in one text parted by "|"; few are likelier than a half, so the threshold matters."""
    rng, rows = random.Random(0), []
    for _ in range(120):
        labels = [label for label in WORDS if rng.random() < 0.4]
        words = [rng.choice(WORDS[label]) for label in labels] + ["the", "film"]
        rows.append({"text": " ".join(words), "label": "|".join(labels)})
    flags = ["--config.task.label=label", "--config.task.separator=|", "--config.task.threshold=0.4"]
    return write_rows(folder / "x.jsonl", rows), flags


# Task -> (rows, variant of the config, problem_type)
CASES = {
    "pair": (pairs, "files", "single_label_classification"),
    "regression": (scores, "regression", "regression"),
    "multilabel": (moods, "multilabel", "multi_label_classification"),
}
COMMON = (
    "--config.data.holdout=0.3",
    "--config.model.scratch.layers=1",
    "--config.optim.lr=1e-2",
    "--config.train.duration=60 steps",
    "--config.evaluate.every=30",
    "--config.checkpoint.every=30",
)


@pytest.fixture(scope="module", params=CASES)
def finished(request, tmp_path_factory):
    """(task name, rows file, run folder)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    write, variant, _ = CASES[name]
    source, flags = write(folder)
    train(folder / "run", *COMMON, f"--config.data.train={source}", *flags, variant=variant)
    return name, source, folder / "run"


def texts_of(task, rows):
    columns = {"pair": ("premise", "hypothesis"), "regression": ("sentence1", "sentence2")}.get(task, ("text",))
    return [[row[column] for row in rows] for column in columns]


def test_the_export_gives_transformers_the_logits_that_predict_uses(finished, tmp_path, capsys):
    task, source, run = finished
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"verified: logits read by {READER}" in capsys.readouterr().out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["problem_type"] == CASES[task][2]
    if task == "multilabel":
        assert task_from_hf(config).threshold == 0.4, (
            "predict of the folder uses the threshold that the run was scored with"
        )
    here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'out'}")
    rows = read_rows(tmp_path / "out")
    logits_XC = transformers_logits(tmp_path / "hf", *texts_of(task, rows))
    if task == "regression":
        found, expected = np.array([row["predicted_score"] for row in rows]), logits_XC[:, 0]
    else:
        found = np.array([list(row["predicted_probabilities"].values()) for row in rows])
        exp_XC = np.exp(logits_XC)
        expected = exp_XC / (1 + exp_XC) if task == "multilabel" else exp_XC / exp_XC.sum(-1, keepdims=True)
        names = [config["id2label"][str(i)] for i in range(logits_XC.shape[1])]
        assert all(list(row["predicted_probabilities"]) == names for row in rows)
    assert np.ptp(expected, axis=0).max() > 10 * TOLERANCE, "the texts tell something"
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    if task == "multilabel":
        assert ((found > 0.4) & (found < 0.5)).any(), "else a threshold of one half would say the same"
        likely = [[name for name, p in zip(names, row_C, strict=True) if p > 0.4] for row_C in found]
        assert [row["predicted_labels"] for row in rows] == likely


def test_the_run_scores_as_it_said(finished, tmp_path):
    """The columns, the separator and the threshold are the run's; so is the split that it was measured on."""
    task, _, run = finished
    here("evaluate", f"--run={run}", f"--output={tmp_path / 'scores.json'}")
    report = json.loads((run / "report.json").read_text())
    found = json.loads((tmp_path / "scores.json").read_text())
    rough = 0.02 if task == "pair" else TOLERANCE  # that run's products are bfloat16
    for name in found.keys() & {"loss", "accuracy", "spearman", "micro_f1"}:
        assert found[name] == pytest.approx(report[name], abs=rough), name
    assert found["details"]["examples"] == report["details"]["examples"]
