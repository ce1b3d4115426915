"""The model card: front matter that the hub reads, measured scores, nothing private."""

import pytest
from huggingface_hub import ModelCard

from jaxft.hf.card import dataset_name, model_card

LABELS = {"0": "no", "1": "yes | maybe", "10": "ten", "2": "two"}


def card(**changes):
    given = dict(
        name="sst2",
        base_model="google-bert/bert-base-cased",
        head="sequence",
        images=False,
        labels=LABELS,
        dataset="tfds",
        split="validation",
        results={"accuracy": 0.93123, "loss": 0.2, "mcc": float("nan")},
        config={"seed": 3, "model": {"name": "bert", "hf": "/home/somebody/model"}, "optim": {"lr": 2e-5}},
        measured_in="float32",
        dtype="float32",
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
    data = {"name": "files", "train": "/home/somebody/secret/train.jsonl", "validation": "secret/dev.tsv", "test": ""}
    text = card(base_model=base_model, config={"model": {"hf": base_model}, "data": data})
    assert (
        "| data.train | `train.jsonl` |" in text and "| data.validation | `dev.tsv` |" in text and "secret" not in text
    )
    assert "base_model" not in text and "/home/somebody" not in text and "./model" not in text
    ModelCard(text)


@pytest.mark.parametrize(
    ("data", "split", "name"),
    [
        ({"name": "files", "train": "/home/somebody/reviews.jsonl", "holdout": 0.1}, "validation", "reviews.jsonl"),
        ({"name": "files", "train": "a/reviews.jsonl", "test": "b/test.csv"}, "test", "test.csv"),
        ({"name": "tfds", "builder": "glue/sst2", "train": "train[:90%]"}, "test", "glue/sst2"),
        ({"name": "docstrings", "data_dir": "/home/somebody/data"}, "test", "docstrings"),
    ],
    ids=str,
)
def test_the_data_have_the_name_that_a_reader_knows(data, split, name):
    assert dataset_name(data, split) == name
    assert "glue/sst2" in card(config={"data": {"name": "tfds", "builder": "glue/sst2"}})


@pytest.mark.parametrize(
    ("dtype", "exact"), [("float32", True), ("bfloat16", False), ("float16", False)], ids=lambda x: str(x)
)
def test_rounded_weights_do_not_claim_the_scores_of_exact_ones(dtype, exact):
    text = card(dtype=dtype)
    assert ("with exactly these weights" in text) is exact
    assert ("in float32, before they were rounded" in text) is not exact
    assert "with exactly these weights" in card(measured_in="bfloat16", dtype="float32")


def test_the_loading_line_names_the_class():
    assert "AutoModelForSequenceClassification.from_pretrained" in card()
    images = card(images=True)
    assert "AutoModelForImageClassification.from_pretrained" in images
    assert "processor = AutoImageProcessor.from_pretrained" in images and "from PIL import Image\nfrom tr" in images
    assert ModelCard(images).data.pipeline_tag == "image-classification"
