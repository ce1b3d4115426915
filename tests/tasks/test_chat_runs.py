"""A chat model by the real program: trained on conversations, scored, exported, and talked to."""

import io
import json
import random

import pytest

from jaxft.registry import UserError
from tests.verbs_run import READER, here, program, read_rows, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of a mean loss in float32; never loosened
ANSWERS = {"sun": "It is hot.", "ice": "It is cold.", "sea": "It is wet."}
FLAGS = (
    "--config.data.holdout=0.0",
    "--config.input.length=64",
    "--config.input.pack=4",
    "--config.tokenizer.vocab=320",
    "--config.model.hf=",
    "--config.model.remat=none",
    "--config.model.scratch.layers=2",
    "--config.model.scratch.d_model=32",
    "--config.model.scratch.d_ff=64",
    "--config.model.scratch.heads=2",
    "--config.model.scratch.positions=64",
    "--config.optim.lr=1e-2",
    "--config.train.batch=8",
    "--config.train.duration=80 steps",
    "--config.train.log_every=20",
    "--config.evaluate.batch=8",
    "--config.evaluate.every=40",
    "--config.checkpoint.every=40",
)


def conversations(n, seed):
    """One question or several, some of them longer than a row; what the system says is no matter."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        messages = [{"role": "system", "content": rng.choice(("Be kind.", "Hurry!"))}] * rng.randint(0, 1)
        for word in rng.choices(list(ANSWERS), k=rng.choice((1, 2, 3, 9))):
            messages.append({"role": "user", "content": f"What of the {word}?"})
            messages.append({"role": "assistant", "content": ANSWERS[word]})
        rows.append({"messages": messages})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    files = {name: write_rows(folder / f"{name}.jsonl", conversations(n, n)) for name, n in SPLITS.items()}
    data = [f"--config.data.{name}={path}" for name, path in files.items()]
    done = program("main", "--config=configs/chat_sft.py:files", *FLAGS, *data, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut to 64 tokens" in done.stdout and "the model will not learn where to stop" not in done.stdout
    return folder / "run"


SPLITS = {"train": 120, "validation": 30}


def test_scores_are_those_of_the_exported_folder_in_transformers(run):
    """Which reads one conversation at a time, by its chat template, with labels of -100 where somebody else speaks."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    model = AutoModelForCausalLM.from_pretrained(run / "hf").eval()
    total = weight = hits = 0.0
    rows = read_rows(run.parent / "validation.jsonl")
    for row in rows:
        said = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, truncation=True, max_length=64
        )
        ids_1L = torch.tensor([said["input_ids"]])
        labels_1L = torch.where(torch.tensor([said["assistant_masks"]]) > 0, ids_1L, -100)
        count = int((labels_1L[:, 1:] != -100).sum())
        with torch.no_grad():
            made = model(ids_1L, labels=labels_1L)
        total, weight = total + made.loss.item() * count, weight + count
        hits += int((made.logits[:, :-1].argmax(-1) == labels_1L[:, 1:]).sum())
    report = json.loads((run / "report.json").read_text())
    assert report["loss"] == pytest.approx(total / weight, abs=TOLERANCE)
    assert report["accuracy"] == pytest.approx(hits / weight)
    assert (report["details"]["tokens"], report["details"]["examples"]) == (weight, len(rows))
    assert report["accuracy"] > 0.99 and "perplexity" in (run / "hf" / "README.md").read_text()


def test_evaluate_scores_a_file_as_the_run_scored_its_split_and_names_what_it_leaves_out(run, tmp_path, capsys):
    long = {"messages": [{"role": "user", "content": "x " * 90}, {"role": "assistant", "content": "Yes."}]}
    rows = [*read_rows(run.parent / "validation.jsonl"), long]
    data, output = write_rows(tmp_path / "x.jsonl", rows), tmp_path / "scores.json"
    here("evaluate", f"--run={run}", f"--data={data}", f"--output={output}")
    assert f"1 of 31 rows left out:\n  {data}:31: has " in capsys.readouterr().out
    found, report = json.loads(output.read_text()), json.loads((run / "report.json").read_text())
    assert found["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)
    assert found["accuracy"] == report["accuracy"] and found["details"]["tokens"] == report["details"]["tokens"]
    write_rows(data, [{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(UserError, match=f"{data}:1: the assistant says nothing"):
        here("evaluate", f"--run={run}", f"--data={data}")


def test_it_answers_and_stops(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What of the ice?\nWhat of the sun?\n/quit\n"))
    here("generate", f"--run={run}", "--chat", "--max_new_tokens=20")
    assert capsys.readouterr().out.startswith("> It is cold.\n> It is hot.\n> ")


def test_the_export_verifies_and_keeps_its_template(run, tmp_path, capsys):
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"read by {READER}" in capsys.readouterr().out
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == (
        run / "tokenizer" / "chat_template.jinja"
    ).read_text()
