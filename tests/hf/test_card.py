"""The model card: front matter that the hub reads, measured scores, nothing private."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from jaxft.hf.card import model_card

TASK = SimpleNamespace(hf_config=lambda: {"id2label": {"0": "no", "1": "yes | maybe", "10": "ten", "2": "two"}})


def card(**changes):
    given = dict(
        name="sst2",
        base_model="google-bert/bert-base-cased",
        task=TASK,
        dataset="tfds",
        split="validation",
        results={"accuracy": 0.93123, "loss": 0.2, "mcc": float("nan")},
        config={"seed": 3, "model": {"name": "bert", "hf": "/home/somebody/model"}, "optim": {"lr": 2e-5}},
    )
    return model_card(**given | changes)


def test_the_hub_reads_the_measured_scores():
    data = ModelCard(card()).data
    assert data.base_model == "google-bert/bert-base-cased" and data.library_name == "transformers"
    scores = {result.metric_type: result.metric_value for result in data.eval_results}
    assert scores == {"accuracy": 0.93123, "loss": 0.2}  # what is not a number is not claimed
    assert data.eval_results[0].dataset_split == "validation"
    assert "license" not in data.to_dict()


def test_labels_stand_in_the_order_of_the_logits_and_cannot_break_the_table():
    text = card()
    rows = ["| 0 | no |", "| 1 | yes \\| maybe |", "| 2 | two |"]
    assert [text.index(row) for row in rows] == sorted(text.index(row) for row in rows)
    assert "| optim.lr | `2e-05` |" in text and "| accuracy | 0.9312 |" in text and "| mcc | nan |" in text


@pytest.mark.parametrize("base_model", ["", "/home/somebody/model", "./model"])
def test_a_local_path_never_reaches_the_card(base_model):
    text = card(base_model=base_model)
    assert "base_model" not in text and "/home/somebody" not in text and "./model" not in text
    ModelCard(text)


def test_the_loading_line_names_the_class():
    assert "AutoModelForSequenceClassification.from_pretrained" in card()
