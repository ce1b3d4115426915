"""Preferences by the real program: ORPO from nothing, then DPO from its export, which is the reference."""

import json
import random
import shutil

import numpy as np
import pytest

from tests.verbs_run import here, program, read_rows, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5  # of a mean loss in float32; never loosened
LENGTH = 32
FLAGS = (
    "--config.data.holdout=0.0",
    f"--config.input.length={LENGTH}",
    "--config.input.pack=2",
    "--config.model.remat=none",
    "--config.train.batch=8",
    "--config.train.log_every=10",
    "--config.evaluate.batch=8",
    "--config.evaluate.every=15",
    "--config.checkpoint.every=15",
    "--config.train.duration=30 steps",
)
SCRATCH = (
    "--config.model.hf=",
    "--config.task.objective=orpo",
    "--config.tokenizer.vocab=300",
    "--config.optim.lr=1e-2",
    "--config.model.scratch.layers=1",
    "--config.model.scratch.d_model=32",
    "--config.model.scratch.d_ff=64",
    "--config.model.scratch.heads=2",
    f"--config.model.scratch.positions={LENGTH}",
)
KIND, RUDE = ("Gladly.", "Of course.", "With pleasure."), ("No.", "Never.", "Why should I?")


def preferences(n, seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        asked = f"Please {rng.choice(('come', 'go', 'sing', 'wait'))} {rng.choice(('now', 'here', 'soon'))}!"
        rows.append({"prompt": asked, "chosen": rng.choice(KIND), "rejected": rng.choice(RUDE)})
    return rows


def train(folder, name, *flags):
    files = [f"--config.data.{split}={folder / split}.jsonl" for split in ("train", "validation")]
    done = program("main", "--config=configs/dpo.py:files", *FLAGS, *flags, *files, f"--workdir={folder / name}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the finished runs orpo and dpo."""
    folder = tmp_path_factory.mktemp("preferences")
    for split, n in (("train", 80), ("validation", 20)):
        write_rows(folder / f"{split}.jsonl", preferences(n, n))
    assert "reference:" not in train(folder, "orpo", *SCRATCH)
    assert "reference: computing" in train(folder, "dpo", *from_orpo(folder))
    return folder


def from_orpo(folder):
    return (f"--config.model.hf={folder / 'orpo' / 'hf'}", "--config.optim.lr=1e-3")


def record(run):
    return json.loads((run / "report.json").read_text())


def log_likelihoods(hf, rows):
    """[rows, 2] of the chosen and the rejected responses, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(hf), AutoModelForCausalLM.from_pretrained(hf).eval()
    found = []
    for row in rows:
        for name in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
            said = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            ids, learned = torch.tensor(said["input_ids"]), torch.tensor(said["assistant_masks"])[1:] > 0
            with torch.no_grad():
                logs_LV = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
            found.append(logs_LV.gather(-1, ids[1:, None])[:, 0][learned].sum().item())
    return np.array(found).reshape(-1, 2)


def test_scores_are_those_of_transformers_for_the_export_and_the_weights_before(folder):
    pytest.importorskip("torch", reason="the reference needs torch")
    rows = read_rows(folder / "validation.jsonl")
    ratio = log_likelihoods(folder / "dpo" / "hf", rows) - log_likelihoods(folder / "orpo" / "hf", rows)
    margin, report = 0.1 * (ratio[:, 0] - ratio[:, 1]), record(folder / "dpo")
    assert report["loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=TOLERANCE)
    assert report["margin"] == pytest.approx(margin.mean(), abs=TOLERANCE)
    assert report["accuracy"] == pytest.approx((margin > 0).mean())
    assert report["chosen_reward"] == pytest.approx(0.1 * ratio[:, 0].mean(), abs=TOLERANCE)
    assert report["details"]["pairs"] == len(rows)
    assert report["loss"] < np.log(2) and report["accuracy"] > 0.9 and record(folder / "orpo")["accuracy"] > 0.9


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_evaluate_scores_a_file_as_the_run_scored_its_split(name, folder, tmp_path):
    """With the weights before as the reference, of DPO."""
    data, output = folder / "validation.jsonl", tmp_path / "scores.json"
    here("evaluate", f"--run={folder / name}", f"--data={data}", f"--output={output}")
    found, report = json.loads(output.read_text()), record(folder / name)
    for score in ("loss", "margin", "chosen_reward"):
        assert found[score] == pytest.approx(report[score], abs=TOLERANCE), score
    assert found["accuracy"] == report["accuracy"] and found["details"]["pairs"] == report["details"]["pairs"]
    renamed = [{"p": row["prompt"], "c": row["rejected"], "r": row["chosen"]} for row in read_rows(data)]
    turned = write_rows(tmp_path / "turned.jsonl", renamed)
    here("evaluate", f"--run={folder / name}", f"--data={turned}", f"--output={output}", "--text=p,c,r")
    assert json.loads(output.read_text())["margin"] == pytest.approx(-report["margin"], abs=TOLERANCE)


def test_a_run_that_goes_on_has_the_same_reference_and_ends_in_the_same_scores(folder):
    again = shutil.copytree(folder / "dpo", folder / "again")
    shutil.rmtree(again / "checkpoints" / "30")
    (again / "report.json").unlink()
    said = train(folder, "again", *from_orpo(folder))
    assert f"reference: that of {again / 'reference.npz'}" in said and "resuming from the checkpoint of step 15" in said
    assert record(again)["loss"] == record(folder / "dpo")["loss"]
    batches = [(run / "batches.log").read_text().splitlines() for run in (folder / "dpo", again)]
    assert len(batches[0]) == 30 and batches[0] == batches[1]


def test_another_reference_than_that_of_the_checkpoint_is_refused(folder):
    other = shutil.copytree(folder / "dpo", folder / "other")
    (other / "report.json").unlink()
    with np.load(other / "reference.npz") as file:
        arrays = dict(file)
    np.savez(other / "reference.npz", **(arrays | {"train": arrays["train"] + 1}))
    files = [f"--config.data.{split}={folder / split}.jsonl" for split in ("train", "validation")]
    done = program(
        "main", "--config=configs/dpo.py:files", *FLAGS, *from_orpo(folder), *files, f"--workdir={folder / 'other'}"
    )
    assert done.returncode == 2 and "reference.train changed" in done.stderr
