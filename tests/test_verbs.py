"""One tiny run by the real program, and what the other verbs make of it."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft.classifier import Classifier
from jaxft.inputs.text import Reader
from jaxft.registry import UserError
from jaxft.writer import json_numbers
from tests.program import snapshot
from tests.verbs_run import LENGTH, READER, here, program, read_rows, reviews, train, transformers_logits, write_rows

CLASSES = ("bad", "fair", "good")
TOLERANCE = 1e-5  # float32; never loosened


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, rows) in enumerate({"train": 200, "validation": 40, "test": 60}.items()):
        write_rows(folder / f"{split}.jsonl", reviews(rows, seed))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A finished run of three classes; `said` is what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "reviews"
    (folder.parent / "said").write_text(train(folder, *options(data)))
    return folder


def options(data):
    """Enough steps for a good model: one that always says the same would prove little."""
    splits = (f"--config.data.{split}={data / split}.jsonl" for split in ("train", "validation", "test"))
    every = (f"--config.{section}.every=10" for section in ("evaluate", "checkpoint"))
    return (
        *splits,
        *every,
        "--config.optim.lr=1e-2",
        "--config.train.duration=80 steps",
        "--config.train.log_every=10",
    )


def softmax(logits_XC):
    exp_XC = np.exp(logits_XC - logits_XC.max(-1, keepdims=True))
    return exp_XC / exp_XC.sum(-1, keepdims=True)


def probabilities(rows):
    return np.array([[row["predicted_probabilities"][name] for name in CLASSES] for row in rows])


def predict(run, source, output, *flags):
    here("predict", f"--run={run}", f"--input={source}", f"--output={output}", *flags)
    return read_rows(output)


# ---- the run folder ----


def test_the_run_folder_holds_all_that_is_promised(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "tensorboard", "hf", "report.html", "report.json", "checkpoints"} <= names
    assert not [path for path in run.rglob("*.tmp")]
    record = json.loads((run / "config.json").read_text())
    assert record["config"]["model"]["scratch"]["d_model"] == 32, "overrides are resolved"
    assert record["versions"]["jax"] and record["versions"]["python"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert record["git"].removesuffix("+changes") == head.stdout.strip()
    report = json.loads((run / "report.json").read_text())
    assert report["split"] == "test" and report["details"]["examples"] == 60
    steps = {int(path.name) for path in (run / "checkpoints").iterdir()}
    assert {70, 80, report["step"]} == steps, "the two newest and the best"
    assert "<svg" in (run / "report.html").read_text()


def test_the_log_and_tensorboard_hold_the_same_numbers(run):
    logged = read_rows(run / "metrics.jsonl")
    expected = {
        (name if "/" in name else f"train/{name}", record["step"]): value
        for record in logged
        for name, value in record.items()
        if name not in ("step", "time")
    }
    assert {step for _, step in expected} == set(range(10, 90, 10))
    assert {"train/loss", "train/lr", "train/tokens_per_second", "validation/accuracy"} <= {n for n, _ in expected}
    assert expected.keys() == (seen := tensorboard(run / "tensorboard")).keys()
    for key, value in expected.items():
        assert seen[key] == pytest.approx(float(value), rel=1e-6, abs=1e-12), key


def tensorboard(folder):
    # In its own process: TensorBoard warns of its own deprecations, and warnings are errors here.
    code = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps([(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return {(tag, step): value for tag, step, value in json.loads(done.stdout)}


def test_a_person_sees_what_matters(run):
    said = (run.parent / "said").read_text()
    for text in (
        "devices: 1 x cpu",
        "parameters: ",
        "% padding",
        "FLOPs a step",
        "step 10 of 80: loss ",
        "step 10: validation loss ",
        "precision",
        "confusion matrix",
        f'AutoModelForSequenceClassification.from_pretrained("{run}/hf")',
    ):
        assert text in said, text


def test_the_same_command_again_says_so_and_does_nothing(run, data):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "run.lock" and path.is_file()}
    assert "is finished" in train(run, *options(data))
    del before[run / "config.json"]  # written again: versions and commit may be new
    assert before == {path: path.stat().st_mtime_ns for path in before}


# ---- export ----


def test_best_last_and_a_number_export_those_weights(run, tmp_path, capsys):
    best = json.loads((run / "report.json").read_text())["step"]
    for step in ("best", "last", "70"):
        here("export", f"--run={run}", f"--out={tmp_path / step}", f"--step={step}")
    said = capsys.readouterr().out
    assert [f"step {step} written to" in said for step in (best, 80, 70)] == [True] * 3
    in_run = load_file(run / "hf" / "model.safetensors")
    exports = {step: load_file(tmp_path / step / "model.safetensors") for step in ("best", "last", "70")}
    for name, tensor in in_run.items():
        np.testing.assert_array_equal(exports["best"][name], tensor)
    assert not np.array_equal(exports["last"]["classifier.weight"], exports["70"]["classifier.weight"])
    other = "70" if best != 70 else "last"
    cards = [(tmp_path / step / "README.md").read_text() for step in ("best", other)]
    assert ["Measured on" in card for card in cards] == [True, False], "only the best step was measured"
    files = {path.name for path in (run / "hf").iterdir()}
    assert files == {path.name for path in (tmp_path / "70").iterdir()}


def test_bfloat16_halves_the_file_and_verifies(run, tmp_path, capsys):
    here("export", f"--run={run}", f"--out={tmp_path / 'out'}", "--dtype=bfloat16", "--verify")
    assert f"verified: logits read by {READER}" in capsys.readouterr().out
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", run / "hf")]
    assert sizes[0] < 0.6 * sizes[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    cards = [(folder / "README.md").read_text() for folder in (tmp_path / "out", run / "hf")]
    assert ["before they were rounded" in card for card in cards] == [True, False]
    assert all("split of `test.jsonl`" in card and str(run.parent) not in card for card in cards)


def test_a_score_that_is_no_number_is_valid_json_and_read_back(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    report = json.loads((copy / "report.json").read_text())
    record = json_numbers(report | {"loss": float("nan"), "details": {"deep": [float("inf")]}})
    assert record["loss"] == "NaN" and record["details"] == {"deep": ["Infinity"]}
    assert json.loads(json.dumps(record, allow_nan=False))["accuracy"] == report["accuracy"]
    (copy / "report.json").write_text(json.dumps(record))
    here("export", f"--run={copy}", f"--out={tmp_path / 'out'}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| loss | nan |" in card and f"| accuracy | {report['accuracy']:.4f} |" in card, card


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--step=7",), "--step=7: the run has best, last, .*70, 80"),
        (("--step=newest",), "--step=newest: the run has best, last"),
    ],
)
def test_a_step_that_is_not_there_is_refused(run, tmp_path, extra, message):
    with pytest.raises(UserError, match=message):
        here("export", f"--run={run}", f"--out={tmp_path / 'out'}", *extra)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.json"):
        here("export", f"--run={tmp_path}", f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize(
    "tensor", ["bert.encoder.layer.1.output.dense.bias", "bert.embeddings.token_type_embeddings.weight"]
)
@pytest.mark.parametrize("reader", ["transformers", "jaxft"])
def test_verify_passes_and_refuses_by_either_reader(run, tmp_path, monkeypatch, capsys, reader, tensor):
    """The difference is made between the writing and the reading: one number of one tensor."""
    from jaxft import verify
    from jaxft.hf import save

    if (reader, READER) == ("transformers", "jaxft"):
        pytest.skip("this reader needs torch")
    if reader == "jaxft":
        monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    flags = (f"--run={run}", f"--out={tmp_path / 'out'}", "--verify")
    here("export", *flags)
    assert f"verified: logits read by {reader} differ by at most" in capsys.readouterr().out

    def tampered(out, *arguments, **options):
        written = write(out, *arguments, **options)
        tensors = load_file(out / "model.safetensors")
        tensors[tensor][(-1,) * (tensors[tensor].ndim - 1) + (0,)] += 0.1  # all alike, the norm would take it away
        save_file(tensors, out / "model.safetensors", save.METADATA)
        return written

    write, good = save.save, snapshot(tmp_path)
    monkeypatch.setattr(save, "save", tampered)
    with pytest.raises(UserError, match=f"does not compute what the checkpoint does: logits read by {reader}") as error:
        here("export", *flags)
    assert error.value.code == 1
    assert snapshot(tmp_path) == good, "the earlier, good export stays"


# ---- predict ----


def test_predictions_are_those_of_transformers_in_input_order(run, data, tmp_path, monkeypatch):
    """In four chunks; a good part of the rows is longer than the model."""
    monkeypatch.setattr(Reader, "most", 17)
    rows = read_rows(data / "test.jsonl")
    predicted = predict(run, data / "test.jsonl", tmp_path / "out.jsonl")
    assert [{key: row[key] for key in ("id", "text", "label")} for row in predicted] == rows
    np.testing.assert_allclose(probabilities(predicted).sum(-1), 1, atol=1e-6)
    assert [row["predicted_label"] for row in predicted] == [CLASSES[i] for i in probabilities(predicted).argmax(-1)]
    assert {row["predicted_label"] for row in predicted} == set(CLASSES)
    assert any(len(row["text"].split()) > LENGTH for row in rows)
    expected_XC = softmax(transformers_logits(run / "hf", [row["text"] for row in rows]))
    np.testing.assert_allclose(probabilities(predicted), expected_XC, rtol=0, atol=TOLERANCE)


def test_every_format_and_an_hf_folder_give_the_same_predictions(run, data, tmp_path):
    rows = read_rows(data / "test.jsonl")[:20]
    expected = probabilities(predict(run, write_rows(tmp_path / "x.jsonl", rows), tmp_path / "out"))
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "x.txt").write_text("".join(row["text"] + "\n" for row in rows))
    for name in ("x.jsonl", "x.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("x.csv", "x.tsv", "x.txt", "x.jsonl.gz", "x.csv.gz"):
        predicted = predict(run, tmp_path / name, tmp_path / "out")
        np.testing.assert_allclose(probabilities(predicted), expected, rtol=0, atol=TOLERANCE, err_msg=name)
    flags = (f"--hf={run / 'hf'}", f"--input={tmp_path / 'x.jsonl'}", f"--output={tmp_path / 'out'}")
    here("predict", *flags)
    np.testing.assert_allclose(probabilities(read_rows(tmp_path / "out")), expected, rtol=0, atol=TOLERANCE)


def test_the_columns_may_be_named(run, data, tmp_path):
    rows = read_rows(data / "test.jsonl")[:5]
    expected = probabilities(predict(run, write_rows(tmp_path / "x.jsonl", rows), tmp_path / "out"))
    write_rows(tmp_path / "y.jsonl", [{"review": row["text"]} for row in rows])
    predicted = predict(run, tmp_path / "y.jsonl", tmp_path / "out", "--text=review")
    np.testing.assert_allclose(probabilities(predicted), expected, rtol=0, atol=TOLERANCE)


def test_a_bad_row_stops_by_name_or_gets_an_error_in_its_place(run, tmp_path):
    source, output = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a fine film"}\n{"text": ""}\n{"text": \n{"other": 1}\n{"text": "dull"}\n')
    with pytest.raises(UserError, match=r"x.jsonl:2: 'text' is empty; mend the row, or pass --on_bad=skip"):
        predict(run, source, output)
    assert not output.exists() and list(tmp_path.iterdir()) == [source]
    predicted = predict(run, source, output, "--on_bad=skip")
    assert ["predicted_label" in row for row in predicted] == [True, False, False, False, True]
    assert [row.get("error", "").split(": ")[0][-9:] for row in predicted[1:4]] == [f"x.jsonl:{i}"[-9:] for i in "234"]
    assert predicted[3]["other"] == 1, "what could be read of the row stays"


def test_a_long_text_is_cut_where_training_cut_it_by_whoever_reads_the_folder(run, tmp_path):
    source = write_rows(tmp_path / "x.jsonl", [{"text": "dull film fine " * 3 * LENGTH}])
    ours = predict(run, source, tmp_path / "run.jsonl")
    here("predict", f"--hf={run / 'hf'}", f"--input={source}", f"--output={tmp_path / 'hf.jsonl'}")
    assert ours == read_rows(tmp_path / "hf.jsonl")
    config = json.loads((run / "hf" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == LENGTH


def test_a_column_called_error_is_no_failure(run, tmp_path, capsys):
    source = write_rows(tmp_path / "x.jsonl", [{"text": "a fine film", "error": 3}, {"text": "", "error": 4}])
    predicted = predict(run, source, tmp_path / "out.jsonl", "--on_bad=skip")
    assert predicted[0]["error"] == 3 and "predicted_label" in predicted[0]
    assert "1 rows labelled, 1 rows with an error" in capsys.readouterr().out


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_text_column_that_no_row_has_is_named_with_those_there_are(run, tmp_path, on_bad):
    source = write_rows(tmp_path / "x.jsonl", [{"review": "a fine film", "texts": "x"}] * 3)
    with pytest.raises(UserError, match=r'--text=\'text\': .* columns: review, texts; did you mean "texts"'):
        predict(run, source, tmp_path / "out.jsonl", f"--on_bad={on_bad}")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_token_without_an_embedding_is_named_with_its_row(run, data, tmp_path, verb):
    """The tokenizer's post-processor has an id of its own, which no vocabulary lists."""
    shutil.copytree(run / "hf", tmp_path / "hf")
    tokenizer = json.loads((run / "hf" / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [999]
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = data / "test.jsonl"
    given = {"predict": (f"--input={rows}", f"--output={tmp_path / 'out'}"), "evaluate": (f"--data={rows}",)}[verb]
    with pytest.raises(UserError, match=r"test.jsonl:1 has a token of id 999, but the embedding of ids has"):
        here(verb, f"--hf={tmp_path / 'hf'}", *given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(input="absent.jsonl"), "absent.jsonl' does not exist"),
        (dict(output="no/out.jsonl"), "the folder .*no does not exist"),
        (dict(output="."), "is a folder"),
        (dict(run="nowhere"), "no such folder"),
        (dict(run=""), "name one of --run=RUN_FOLDER and --hf=HUB_ID_OR_FOLDER"),
    ],
)
def test_a_wrong_path_is_one_message(run, data, tmp_path, flags, message):
    paths = {"run": run, "input": data / "test.jsonl", "output": tmp_path / "out.jsonl"}
    paths |= {name: tmp_path / path if path else "" for name, path in flags.items()}
    with pytest.raises(UserError, match=message):
        here("predict", *(f"--{name}={path}" for name, path in paths.items()))


def test_a_run_that_is_not_finished_says_what_to_do(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    done = program("predict", f"--run={tmp_path}", f"--input={tmp_path / 'x.jsonl'}", f"--output={tmp_path / 'y'}")
    assert done.returncode == 2 and done.stderr.startswith("jaxft: ") and done.stderr.count("\n") == 1
    assert "has no hf/ folder: the run is not finished" in done.stderr and "python -m jaxft.export" in done.stderr
    with pytest.raises(UserError, match="has no checkpoint yet"):
        here("export", f"--run={tmp_path}", f"--out={tmp_path / 'out'}")


# ---- evaluate ----


def test_scores_equal_those_of_scikit_learn_on_the_predictions(run, data, tmp_path):
    from sklearn import metrics

    predicted = predict(run, data / "test.jsonl", tmp_path / "out.jsonl")
    truth, guess = ([row[key] for row in predicted] for key in ("label", "predicted_label"))
    for flags in ((f"--data={data / 'test.jsonl'}",), (), (f"--data={data / 'test.jsonl'}", f"--hf={run / 'hf'}")):
        here_run = () if any(flag.startswith("--hf") for flag in flags) else (f"--run={run}",)
        here("evaluate", *here_run, *flags, f"--output={tmp_path / 'scores.json'}")
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
        assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro", zero_division=0))
        assert scores["details"]["confusion"] == metrics.confusion_matrix(truth, guess, labels=CLASSES).tolist()
        losses = -np.log([row["predicted_probabilities"][row["label"]] for row in predicted])
        assert scores["loss"] == pytest.approx(losses.mean(), abs=TOLERANCE)
    report = json.loads((run / "report.json").read_text())
    assert scores["accuracy"] == report["accuracy"] and scores["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)


def test_the_report_is_shown_as_after_training(run, data, capsys):
    here("evaluate", f"--run={run}", f"--data={data / 'test.jsonl'}")
    table = capsys.readouterr().out.strip()
    assert "precision" in table and table in (run.parent / "said").read_text()


def test_a_label_that_the_model_does_not_know_is_named(run, tmp_path, capsys):
    rows = [*reviews(4, 0), {"text": "so so", "label": "god"}]
    source = write_rows(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=r'x.jsonl:5: label \'god\' is not one of the 3 classes; did you mean "good"'):
        here("evaluate", f"--run={run}", f"--data={source}")
    here("evaluate", f"--run={run}", f"--data={source}", "--on_bad=skip")
    assert "1 of 5 rows left out:\n  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split=dev",), "--split=dev: the run's data have: train, validation, test"),
        (("--data=tfds:glue",), "write tfds:BUILDER:SPLIT"),
        (("--label=stars",), "--label='stars': .* has no such column"),
        (("--data=tfds:glue:1.0.0",), "write tfds:BUILDER:SPLIT"),
        (("--output=no/where.json",), "the folder no does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(run, flags, message):
    with pytest.raises(UserError, match=message):
        here("evaluate", f"--run={run}", *flags)


def test_bad_rows_stop_before_anything_is_scored(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Classifier, "score", lambda *_: pytest.fail("scored"))
    monkeypatch.setattr(Reader, "most", 2)
    source = write_rows(tmp_path / "x.jsonl", [*reviews(4, 0), {"text": "so so", "label": "so"}, {"text": ""}])
    source.write_text(source.read_text() + "{\n")
    with pytest.raises(UserError) as error:
        here("evaluate", f"--run={run}", f"--data={source}")
    first, *lines, last = str(error.value).splitlines()
    assert first == "3 of 7 rows cannot be used:" and last == "mend them, or pass --on_bad=skip"
    assert {line.split(": ")[0] for line in lines} == {f"  {source}:{i}" for i in (5, 6, 7)}


def test_not_one_usable_row_is_one_message_also_where_bad_rows_are_skipped(run, tmp_path):
    source = write_rows(tmp_path / "x.jsonl", [{"text": "so so", "label": "so"}] * 3)
    with pytest.raises(UserError, match=r"(?s)3 of 3 rows cannot be used:.*x\.jsonl:1: label 'so' is not.*--label"):
        here("evaluate", f"--run={run}", f"--data={source}", "--on_bad=skip")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The test rows as a TFDS builder in TFDS's own folder; its classes have another order than the model's."""
    import tensorflow_datasets as tfds

    names = ["good", "bad", "fair"]

    class FilmReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            columns = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            rows = enumerate(reviews(60, seed=2))
            return {"test": ((i, {"text": row["text"], "label": row["label"]}) for i, row in rows)}

        def _generate_examples(self):
            raise NotImplementedError

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    FilmReviews(file_format="array_record").download_and_prepare()


def test_a_tfds_split_is_scored_by_the_names_of_its_classes(run, prepared, tmp_path):
    here("evaluate", f"--run={run}", "--data=tfds:film_reviews:test", f"--output={tmp_path / 'scores.json'}")
    scores, report = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "report.json"))
    assert scores["accuracy"] == report["accuracy"], "the same rows"
    for split, rows in (("1.0.0:test", 60), ("1.*.*:test[:50%]", 30), ("test[:10%]", 6)):
        here("evaluate", f"--run={run}", f"--data=tfds:film_reviews:{split}", f"--output={tmp_path / 'scores.json'}")
        assert json.loads((tmp_path / "scores.json").read_text())["details"]["examples"] == rows, split
