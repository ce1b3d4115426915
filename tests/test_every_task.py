"""What holds for every registered task that judges whole inputs; and that the others have tests of their own."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data.source import Split
from jaxft.metrics import METRICS
from jaxft.registry import UserError, call
from jaxft.tasks import TASKS, Example, Picture, task_from_hf

COMMON = {"label": "label", "metric": ""}
SECTIONS = {
    "cls": {"pair": "", "smoothing": 0.1},
    "image_cls": {"image": "image", "smoothing": 0.1, "crop": 1.0, "flip": False},
    "pair": {"pair": "other", "smoothing": 0.1},
    "regression": {"pair": "other"},
    "multilabel": {"pair": "", "separator": "", "threshold": 0.5, "smoothing": 0.0},
}
SECTIONS |= {name: {"text": "text", **section} for name, section in SECTIONS.items() if name != "image_cls"}
LABELS = {
    "cls": ["x", "y", "z"],
    "image_cls": ["x", "y", "z"],
    "pair": ["x", "y", "z"],
    "regression": [0.5, 1.0, 4.5],
    "multilabel": [["x"], ["y", "z"], []],
}
ELSEWHERE = dict.fromkeys(("causal_lm", "masked_lm", "span_corruption"), "tasks/test_language_models.py")
ELSEWHERE |= {
    "token_cls": "tasks/test_token_runs.py",
    "chat": "tasks/test_chat_runs.py",
    "dpo": "tasks/test_preference_runs.py",
    "detection": "tasks/test_detection.py",
    "distill": "tasks/test_distill.py",
    "seq2seq": "tasks/test_seq2seq_runs.py",
    "span_qa": "tasks/test_span_qa.py",
    "multiple_choice": "tasks/test_multiple_choice.py",
    "retrieval": "tasks/test_vectors.py",
    "similarity": "tasks/test_vectors.py",
}
B, S = 2, 3


def test_every_task_is_tested():
    assert SECTIONS.keys() | ELSEWHERE.keys() == TASKS.keys()
    assert all((pathlib.Path(__file__).parent / file).exists() for file in ELSEWHERE.values())


def split(rows, file="data.jsonl"):
    return Split(rows, file, lambda i: f"{file}:{i + 1}")


def make(name):
    return call(TASKS, {"name": name, **COMMON, **SECTIONS[name]}, "task")


def rows(name):
    shown = "image" if name == "image_cls" else "text"
    return [{shown: f"t{i}", "other": f"o{i}", "label": label} for i, label in enumerate(LABELS[name])]


def fitted(name):
    return make(name).fit({"train": split(rows(name)), "validation": split(rows(name)[:1])}, {})


def columns(task):
    return {option: getattr(task, option) for option in task.columns}


def batch(name, task):
    """Labels of the three rows, twice; the last slot is empty."""
    label_XC = np.array([task.example(row).label for row in rows(name)])
    label = jnp.asarray(np.stack([label_XC, label_XC]))
    weight_BS = jnp.ones((B, S)).at[1, 2].set(0.0)
    return {"label": label.astype(jnp.int32 if label.dtype == jnp.int32 else jnp.float32), "weight": weight_BS}


def logits(task):
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, S, task.outputs)), jnp.float32)


@pytest.mark.parametrize("name", SECTIONS)
def test_examples_have_text_pair_and_label_or_none(name):
    task = fitted(name)
    example, blind = task.example(rows(name)[1]), task.example({task.reads: "t1", "other": "o1"}, labelled=False)
    if task.reads == "image":
        assert isinstance(example, Picture) and example.image == "t1"
    else:
        assert isinstance(example, Example) and example.text == "t1"
        assert example.pair == ("o1" if task.pair else None)
    assert example.label is not None and blind == example._replace(label=None)
    assert task.head == "sequence" and task.outputs == (1 if name == "regression" else 3)


@pytest.mark.parametrize("name", SECTIONS)
def test_what_an_empty_slot_holds_changes_neither_loss_nor_gradient(name):
    task = fitted(name)
    data, logits_BSC = batch(name, task), logits(task)

    def sums(logits_BSC, data):
        return task.loss(logits_BSC, data)

    junk = {**data, "label": data["label"].at[1, 2].set(-100)}
    for dirty_BSC in (logits_BSC.at[1, 2].set(jnp.nan), logits_BSC.at[1, 2].set(1e30)):
        clean, dirty = sums(logits_BSC, data), sums(dirty_BSC, junk)
        assert jax.tree.map(float, clean) == jax.tree.map(float, dirty)
        gradient_BSC = jax.grad(lambda x: sums(x, junk)["loss"][0])(dirty_BSC)
        assert np.isfinite(gradient_BSC).all() and (gradient_BSC[1, 2] == 0).all()
    assert clean["loss"][1] == B * S - 1


@pytest.mark.parametrize("name", SECTIONS)
def test_sums_of_halves_add_up_to_the_sums_of_the_whole(name):
    task = fitted(name)
    data, logits_BSC = batch(name, task), logits(task)
    whole = task.loss(logits_BSC, data)
    halves = [
        task.loss(logits_BSC[i : i + 1], {key: value[i : i + 1] for key, value in data.items()}) for i in range(B)
    ]
    for key in whole:
        np.testing.assert_allclose(whole[key], np.add(halves[0][key], halves[1][key]), rtol=1e-6)
        assert all(x.dtype == jnp.float32 and x.shape == () for x in whole[key])


@pytest.mark.parametrize("name", SECTIONS)
def test_the_meter_agrees_with_the_step_and_offers_every_metric_of_the_task(name):
    task = fitted(name)
    data, logits_BSC = batch(name, task), logits(task)
    sums, real_BS = task.loss(logits_BSC, data), np.asarray(data["weight"]) > 0
    meter = task.meter()
    for i in range(B):
        part = task.loss(logits_BSC[i : i + 1], {key: value[i : i + 1] for key, value in data.items()})
        one_BSC, one_label = np.asarray(logits_BSC[i][real_BS[i]]), np.asarray(data["label"][i][real_BS[i]])
        meter.add(one_BSC, one_label, float(part["loss"][0]), float(part["loss"][1]))
    result = meter.result()
    for key, (total, weight) in sums.items():
        assert result[key] == pytest.approx(float(total / weight), rel=1e-5)
    optional = {"f1"} if task.outputs != 2 else set()
    assert set(task.metrics) - optional <= set(result) and task.metric in result
    assert set(task.metrics) <= {"loss", *METRICS}
    report = meter.report()
    assert json.loads(json.dumps(report)) == report and report["examples"] == B * S - 1
    assert meter.table().isascii()


@pytest.mark.parametrize("name", SECTIONS)
def test_predictions_are_json_and_one_a_row(name):
    task = fitted(name)
    predictions = task.predictions(np.asarray(logits(task)).reshape(-1, task.outputs), [{}] * (B * S))
    assert len(predictions) == B * S
    assert json.loads(json.dumps(predictions)) == predictions


@pytest.mark.parametrize("name", SECTIONS)
def test_config_json_gives_the_task_back(name):
    task = fitted(name)
    config = json.loads(json.dumps(task.hf_config()))
    again = task_from_hf(config, reads=task.reads, **columns(task))
    assert again.hf_config() == task.hf_config() and again.outputs == task.outputs
    assert again.example(rows(name)[1]) == task.example(rows(name)[1])


@pytest.mark.parametrize("name", SECTIONS)
def test_transformers_reads_the_fields_as_meant(name, tmp_path):
    from transformers import AutoConfig, BertConfig

    task = fitted(name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **task.hf_config()}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, BertConfig) and config.num_labels == task.outputs
    assert config.problem_type == task.hf_config()["problem_type"]
    if name != "regression":
        assert tuple(config.id2label[i] for i in range(config.num_labels)) == task.classes
        assert config.label2id == {label: i for i, label in enumerate(task.classes)}
    config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    again = task_from_hf(config, reads=task.reads, **columns(task))
    assert again.hf_config() == task.hf_config()


@pytest.mark.parametrize("name", SECTIONS)
def test_the_loss_equals_that_of_transformers(name):
    torch = pytest.importorskip("torch", reason="transformers' losses need torch")
    from transformers import BertConfig, BertForSequenceClassification

    task = fitted(name)
    if "smoothing" in SECTIONS[name] and name != "multilabel":
        task = call(
            TASKS, {"name": name, **COMMON, **SECTIONS[name], "smoothing": 0.0, "classes": task.classes}, "task"
        )
    labels = [task.example(row).label for row in rows(name)]
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    fields = task.hf_config()
    fields["id2label"] = {int(i): label for i, label in fields["id2label"].items()}
    model = BertForSequenceClassification(BertConfig(**sizes, **fields)).eval()
    with torch.no_grad():
        out = model(input_ids=torch.arange(1, 7).reshape(3, 2), labels=torch.tensor(labels))
    logits_BSC = jnp.asarray(out.logits.numpy())[None]
    total, weight = task.loss(logits_BSC, {"label": jnp.asarray([labels]), "weight": jnp.ones((1, 3))})["loss"]
    np.testing.assert_allclose(total / weight, out.loss.item(), rtol=1e-5)


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_split_and_a_missing_column_are_user_errors(name):
    with pytest.raises(UserError, match="the validation split is empty"):
        make(name).fit({"train": split(rows(name)), "validation": split([])}, {})
    shown = make(name).reads
    wrong = {"text": "txet", "image": "imaeg"}[shown]
    with pytest.raises(UserError, match=rf"task\.{shown}='{shown}'.*columns: {wrong}, .*did you mean \"{wrong}\""):
        make(name).fit({"train": split([{wrong: "x", "other": "y", "label": 1}])}, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no id2label"),
        ({"id2label": {"0": "a", "2": "b"}}, "must be 0 to 1"),
        ({"id2label": {"0": "a", "1": "a"}}, "more than one class the name 'a'"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "ranking"}, "problem_type='ranking' is not known"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "regression"}, "2 outputs is not supported"),
    ],
)
def test_a_config_json_that_names_no_task_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        task_from_hf(config, text="text", pair="", label="label")


def test_a_config_json_without_problem_type_is_read_as_transformers_reads_it():
    two = task_from_hf({"id2label": {0: "a", 1: "b"}, "problem_type": None}, text="t", pair="", label="l")
    one = task_from_hf({"id2label": {"0": "LABEL_0"}}, text="t", pair="", label="l")
    assert two.classes == ("a", "b") and two.metric == "accuracy" and one.metric == "spearman"
