"""Language models by the real program: trained on running text, scored, exported, read by transformers alike."""

import json
import math
import shutil

import numpy as np
import pytest

from jaxft.data.pipeline import WHOLE
from jaxft.registry import UserError
from tests.verbs_run import READER, here, program, reviews, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5  # of a mean loss; float32; never loosened
LENGTH = 32
POSITIONS = f"--config.model.scratch.positions={LENGTH}"
CASES = {
    "causal_lm": ("gpt_clm", (POSITIONS, "--config.tokenizer.vocab=300", "--config.optim.lr=3e-3")),
    "span_corruption": (
        "t5_span",
        ("--config.tokenizer.vocab=400", "--config.model.scratch.decoder_layers=1", "--config.optim.lr=3e-3"),
    ),
    "masked_lm": ("bert_mlm", (POSITIONS, "--config.tokenizer.vocab=200", "--config.optim.lr=3e-3")),
}
SMALL = (
    "--config.data.holdout=0.2",
    f"--config.input.length={LENGTH}",
    "--config.model.hf=",
    "--config.model.scratch.layers=1",
    "--config.model.scratch.d_model=32",
    "--config.model.scratch.d_ff=64",
    "--config.model.scratch.heads=2",
    "--config.train.batch=8",
    "--config.train.duration=40 steps",
    "--config.train.log_every=10",
    "--config.evaluate.batch=8",
    "--config.evaluate.every=20",
    "--config.checkpoint.every=20",
    "--config.schedule.warmup=2",
)


PIPELINES = {
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "span_corruption": "text2text-generation",
}


@pytest.fixture(scope="module", params=CASES)
def finished(request, tmp_path_factory):
    """(task name, run folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write_rows(folder / "x.jsonl", reviews(150, 0))
    train(request.param, source, folder / "run")
    return request.param, folder / "run"


def train(task, source, workdir):
    config, flags = CASES[task]
    options = (*SMALL, *flags, f"--config.data.train={source}", f"--workdir={workdir}")
    done = program("main", f"--config=configs/{config}.py:files", *options)
    assert done.returncode == 0, done.stdout + done.stderr


def record(run):
    return json.loads((run / "report.json").read_text())


def held_out(run):
    """The run's inputs, built again: batches of its validation split."""
    from jaxft.config import parse
    from jaxft.inputs import corpus

    config = parse(json.loads((run / "config.json").read_text())["config"])
    placeholder = type("Cfg", (), {"positions": LENGTH, "start_id": 0})
    return corpus.prepare(config, placeholder, run / "tokenizer", None, lambda text: None)


def test_scores_are_those_of_the_exported_folder_in_transformers(finished):
    """Row by row and segment by segment, so that transformers sees each piece of a document alone."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    import transformers

    task, run = finished
    cls = {
        "causal_lm": "AutoModelForCausalLM",
        "masked_lm": "AutoModelForMaskedLM",
        "span_corruption": "AutoModelForSeq2SeqLM",
    }[task]
    model = getattr(transformers, cls).from_pretrained(run / "hf", attn_implementation="eager").eval()
    total = weight = hits = size = 0.0
    for batch in held_out(run).eval_batches("validation", 8, WHOLE):
        size += batch["bytes"].sum()
        for row in range(len(batch["ids"])):
            told = "target_" if task == "span_corruption" else ""
            segment_L = batch[f"{told}segment"][row]
            logits_LV = torch.zeros(len(segment_L), model.config.vocab_size)
            for segment in range(1, segment_L.max() + 1):
                inside = np.flatnonzero(segment_L == segment)
                if not len(inside):
                    continue  # a text too short to lose something
                ids = batch["ids"][row][batch["segment"][row] == segment]
                given = {"input_ids": torch.tensor(ids[None]).long()}
                if told:
                    given["decoder_input_ids"] = torch.tensor(batch["target_ids"][row, inside][None]).long()
                with torch.no_grad():
                    logits_LV[inside] = model(**given).logits[0]
            if task == "masked_lm":
                logits_LV = logits_LV[batch["at"][row]]
            counts = torch.tensor(batch["weight"][row] > 0)
            labels = torch.tensor(batch["label"][row]).long()[counts]
            logits_LV = logits_LV[counts]
            total += torch.nn.functional.cross_entropy(logits_LV, labels, reduction="sum").item()
            hits += (logits_LV.argmax(-1) == labels).sum().item()
            weight += int(counts.sum())
    report = record(run)
    assert report["loss"] == pytest.approx(total / weight, abs=TOLERANCE)
    assert report["accuracy"] == pytest.approx(hits / weight, abs=1e-9)
    assert report["perplexity"] == pytest.approx(math.exp(total / weight), rel=TOLERANCE)
    if task == "causal_lm":
        assert report["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=TOLERANCE)
        texts = [row["text"] for row in held_out(run).splits["validation"].rows]
        assert size == pytest.approx(sum(len(text.encode()) for text in texts)), "each byte of the split once"
    else:
        assert "bits_per_byte" not in report


def test_evaluate_scores_the_split_as_the_run_did_and_other_texts(finished, tmp_path, capsys):
    """In rows and batches of the run, and with its seed: the same tokens are hidden."""
    task, run = finished
    here("evaluate", f"--run={run}", "--split=validation", f"--output={tmp_path / 'scores.json'}")
    found, report = json.loads((tmp_path / "scores.json").read_text()), record(run)
    assert found["details"]["tokens"] == report["details"]["tokens"]
    for name in ("loss", "perplexity", "accuracy", *(["bits_per_byte"] if task == "causal_lm" else [])):
        assert found[name] == pytest.approx(report[name], rel=1e-5), name
    other = write_rows(tmp_path / "y.jsonl", [{"said": row["text"]} for row in reviews(20, 7)] + [{"said": " "}])
    with pytest.raises(UserError, match=rf"1 of 21 rows cannot be used:\n  {other}:21: 'said' is empty"):
        here("evaluate", f"--run={run}", f"--data={other}", "--text=said")
    here("evaluate", f"--run={run}", f"--data={other}", "--text=said", "--on_bad=skip")
    assert "perplexity" in capsys.readouterr().out


def test_it_learns_what_the_texts_are_made_of(finished):
    _, run = finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.75 * losses[0], losses


def test_the_folder_holds_a_card_a_page_and_a_model_that_export_verifies(finished, tmp_path, capsys):
    task, run = finished
    card, page = (run / "hf" / "README.md").read_text(), (run / "report.html").read_text()
    assert PIPELINES[task] in card and "## Labels" not in card
    assert "perplexity" in page and "perplexity" in card
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"read by {READER}" in capsys.readouterr().out


def test_a_run_that_goes_on_sees_the_same_batches_and_ends_in_the_same_scores(finished, tmp_path):
    """Which tokens are hidden depends on the step alone."""
    task, run = finished
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "40")
    (again / "report.json").unlink()
    train(task, run.parent / "x.jsonl", again)
    batches = [(folder / "batches.log").read_text().splitlines() for folder in (run, again)]
    assert len(batches[0]) == 40 and batches[0] == batches[1]
    assert record(again)["loss"] == record(run)["loss"] and record(again)["step"] == 40
