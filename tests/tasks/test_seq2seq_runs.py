"""Sequence to sequence by the real program: trained on pairs, scored by texts, exported, read by transformers alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxft.registry import UserError
from tests import every_task
from tests.verbs_run import READER, here, program, read_rows, write_rows

pytestmark = pytest.mark.slow

LENGTH = 32
FLAGS = (
    "--config.data.numbers=150",
    f"--config.input.length={LENGTH}",
    "--config.tokenizer.vocab=320",
    "--config.task.prefix=say: ",
    f"--config.task.target_length={LENGTH}",
    "--config.task.write=9",
    "--config.task.max_new_tokens=12",
    "--config.model.scratch.layers=1",
    "--config.model.scratch.decoder_layers=1",
    "--config.model.scratch.d_model=32",
    "--config.model.scratch.d_ff=64",
    "--config.model.scratch.heads=2",
    "--config.train.duration=60 steps",
    "--config.train.log_every=20",
    "--config.schedule.warmup=2",
    "--config.evaluate.batch=8",
    "--config.evaluate.every=30",
    "--config.checkpoint.every=30",
    "--config.optim.lr=1e-2",
)


def train(workdir, *flags):
    done = program("main", "--config=configs/mt.py", *FLAGS, *flags, f"--workdir={workdir}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mt") / "run"
    (folder.parent / "said").write_text(train(folder))
    return folder


def record(run):
    return json.loads((run / "report.json").read_text())


def pairs(split="test"):
    from jaxft.data.number_words import number_words

    return [(f"say: {row['de']}", row["en"]) for row in number_words(numbers=150).splits[split].rows]


def theirs(run, sources, **how):
    """Texts of the exported folder, by nothing but transformers."""
    pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "hf", attn_implementation="eager").eval()
    batch = tokenizer(sources, truncation=True, padding=True, return_tensors="pt")
    return tokenizer.batch_decode(model.generate(**batch, **how), skip_special_tokens=True)


def test_scores_are_those_of_the_libraries_on_texts_that_transformers_writes(run):
    sources, references = map(list, zip(*pairs(), strict=True))
    texts, report = theirs(run, sources), record(run)
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    bleu = BLEU()
    wanted = {
        "bleu": bleu.corpus_score(texts, [references]).score,
        "chrf": CHRF().corpus_score(texts, [references]).score,
    }
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    wanted |= {name: np.mean([row[name].fmeasure for row in rows]) for name in rows[0]}
    assert {name: report[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert len(set(texts)) > 3 and report["rouge1"] > 0.1, "what is compared is more than nothing"
    details = report["details"]
    assert details["signatures"]["bleu"] == str(bleu.get_signature()) and details["texts"] == len(texts)
    assert {(one["source"], one["reference"], one["text"]) for one in details["written"]} <= set(
        zip(sources, references, texts, strict=True)
    )


def test_an_evaluation_writes_texts_and_scores_them(run):
    lines = [line for line in read_rows(run / "metrics.jsonl") if "validation/bleu" in line]
    assert [line["step"] for line in lines] == [30, 60]
    assert {"validation/chrf", "validation/rouge2", "validation/loss", "validation/perplexity"} <= lines[0].keys()


def test_all_evaluations_write_by_the_programs_that_the_first_one_compiled(tmp_path, monkeypatch):
    """What a jitted function calls is called once for each program."""
    from jaxft.config import parse
    from jaxft.generation import write
    from jaxft.train import train as train_here

    traced = []
    for name in ("begin", "go_on"):
        plain = getattr(write, name)
        counted = lambda *given, name=name, plain=plain: traced.append(name) or plain(*given)  # noqa: E731
        monkeypatch.setattr(write, name, counted)
    raw = every_task.config("seq2seq", tmp_path, evaluate__every="1 step", task__write=9, task__write_last=9)
    train_here(raw, parse(raw), tmp_path / "run", (), lambda text: None)
    lines = [line for line in read_rows(tmp_path / "run" / "metrics.jsonl") if "validation/bleu" in line]
    assert len(lines) == every_task.STEPS, "each wrote nine texts of several lengths, in two batches"
    assert traced == ["begin", "go_on"]


def test_the_best_checkpoint_is_the_one_with_the_best_texts(run):
    lines = [line for line in read_rows(run / "metrics.jsonl") if "validation/bleu" in line]
    assert record(run)["step"] == max(lines, key=lambda line: line["validation/bleu"])["step"]


def test_a_search_writes_what_that_of_transformers_does(run, tmp_path):
    """`beams` of the config, by evaluating another split with the run's own export."""
    again = shutil.copytree(run, tmp_path / "run")
    (again / "report.json").unlink()
    shutil.rmtree(again / "checkpoints" / "60")
    train(again, "--config.task.beams=3", "--allow_change=task.beams")
    sources, references = map(list, zip(*pairs(), strict=True))
    texts = theirs(again, sources)
    assert json.loads((again / "hf" / "generation_config.json").read_text())["num_beams"] == 3
    from sacrebleu.metrics import CHRF

    assert record(again)["chrf"] == pytest.approx(CHRF().corpus_score(texts, [references]).score, abs=1e-9)
    assert texts != theirs(again, sources, num_beams=1)


def test_the_page_shows_texts_beside_their_references_escaped_and_the_card_how_to_write_some(run):
    page, card = (run / "report.html").read_text(), (run / "hf" / "README.md").read_text()
    from markupsafe import escape

    for one in record(run)["details"]["written"]:
        assert all(str(escape(one[name])) in page for name in one)
    assert "text2text-generation" in card and "model.generate" in card and "| bleu |" in card


def test_export_verifies_and_says_how_texts_are_written(run, tmp_path, capsys):
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"read by {READER}" in capsys.readouterr().out
    said = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert said == json.loads((run / "hf" / "generation_config.json").read_text())
    assert said["max_new_tokens"] == 12 and said["num_beams"] == 1 and said["decoder_start_token_id"] == 0


def test_generate_writes_what_the_evaluation_wrote(run, tmp_path):
    written = record(run)["details"]["written"]
    source = write_rows(tmp_path / "in.jsonl", [{"de": one["source"].removeprefix("say: ")} for one in written])
    here("generate", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}")
    assert [row["generated"] for row in read_rows(tmp_path / "out.jsonl")] == [one["text"] for one in written]


def test_evaluate_scores_a_file_as_the_run_scored_its_test_split(run, tmp_path):
    rows = [{"de": source.removeprefix("say: "), "en": target} for source, target in pairs()]
    data, report = write_rows(tmp_path / "test.jsonl", rows), tmp_path / "report.json"
    here("evaluate", f"--run={run}", f"--data={data}", f"--output={report}")
    found, wanted = json.loads(report.read_text()), record(run)
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-9), name
    assert found["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
    assert found["details"]["signatures"] == wanted["details"]["signatures"]


def test_evaluate_names_the_pairs_that_the_run_would_drop(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "run")
    told = json.loads((other / "config.json").read_text())
    told["config"]["task"]["too_long"] = "drop"
    (other / "config.json").write_text(json.dumps(told))
    data = write_rows(tmp_path / "x.jsonl", [{"de": "eins", "en": "one"}, {"de": "eins", "en": "one " * 90}])
    here("evaluate", f"--run={other}", f"--data={data}", f"--output={tmp_path / 'report.json'}")
    expected = f"1 of 2 rows left out:\n  {data}:2: the target has more than {LENGTH} tokens"
    assert expected in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["details"]["examples"] == 1
    write_rows(data, [{"de": "eins", "en": "one " * 90}])
    with pytest.raises(UserError, match="all 1 rows are left out"):
        here("evaluate", f"--run={other}", f"--data={data}")


def test_what_is_too_long_is_cut_or_dropped_and_said(tmp_path):
    from configs.mt import get_config
    from jaxft.config import parse
    from jaxft.inputs import seq2seq
    from jaxft.models import t5

    rows = [{"de": "eins " * n, "en": "one " * m} for n, m in [(2, 2), (90, 2), (3, 90), (3, 3)] * 5]
    data = str(write_rows(tmp_path / "x.jsonl", rows))
    raw = get_config().to_dict()
    raw["data"] = {"name": "files", "train": data, "validation": data, "test": "", "holdout": 0.0}
    raw["input"]["length"], raw["task"]["target_length"] = LENGTH, LENGTH - 8

    def prepared(too_long):
        raw["task"]["too_long"] = too_long
        made = seq2seq.prepare(parse(raw), t5.TINY, tmp_path / "tokenizer", None, said.append)
        return made, next(line for line in said if line.startswith("train: "))

    said = []
    made, line = prepared("cut")
    assert line.startswith("train: 20 of 20 rows, 5 sources cut to 32 tokens, 5 targets cut to 24 tokens; packed into")
    ends = [made.pairs["train"].targets.ids[end - 1] for end in made.pairs["train"].targets.offsets[1:]]
    assert set(ends) == {made.target_encoder.named["eos_token"]}, "what is cut ends as what is not"
    said = []
    made, line = prepared("drop")
    assert line.startswith("train: 10 of 20 rows; packed into")
    assert sorted(made.pairs["train"].plan.examples) == [i for i in range(20) if i % 4 in (0, 3)]
    told = next(text for text in said if "left out" in text)
    assert told.startswith("train: 10 of 20 rows left out (listed in ")
    assert f"{data}:2: the source has more than 32 tokens\n  {data}:3: the target has more than 24 tokens" in told
    listed = json.loads(Path(told.partition("listed in ")[2].partition("):")[0]).read_text())
    assert [place for place, _ in listed] == [f"{data}:{i + 1}" for i in range(20) if i % 4 in (1, 2)]


def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path):
    from jaxft.hf import trainers
    from jaxft.inputs.seq2seq import _check_end

    texts = ["a text", "another text"]
    with pytest.raises(UserError, match=r"no end-of-text token behind a text.*tokenizer\.name='seq2seq'"):
        _check_end(trainers.bpe(texts, vocab=300, lowercase=False, folder=tmp_path / "bpe"))
    _check_end(trainers.seq2seq(texts, vocab=300, lowercase=False, folder=tmp_path / "seq2seq"))
