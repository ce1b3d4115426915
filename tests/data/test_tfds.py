"""TFDS builders without TensorFlow and without a network."""

import socket
import subprocess
import sys

import pytest
from PIL import Image

from jaxft.data.tfds import tfds
from jaxft.registry import BadRow, UserError

SENTENCES = [("good — fine", 1), ("bad", 0), ("so so", 1), ("awful", 0)]


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A data_dir with a small glue/sst2, made by the builder's own machinery."""
    from jaxft.data.tfds import library_with_text

    builder = library_with_text().builder("glue/sst2", data_dir=tmp_path, file_format="array_record")
    rows = [(i, {"sentence": text, "label": label, "idx": i}) for i, (text, label) in enumerate(SENTENCES)]
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, dl: {"train": rows, "validation": rows[:2]})
    monkeypatch.setattr(type(builder), "url_infos", {})
    builder.download_and_prepare()
    monkeypatch.undo()
    return str(tmp_path)


def load(data_dir, builder="glue/sst2", train="train", validation="validation", test=""):
    return tfds(builder=builder, data_dir=data_dir, train=train, validation=validation, test=test)


def test_a_prepared_text_builder_is_read_offline(glue):
    data = load(glue)
    rows = list(data.splits["train"].rows)
    assert sorted((row["sentence"], row["label"]) for row in rows) == sorted(SENTENCES)
    assert all(type(row["sentence"]) is str and type(row["label"]) is int for row in rows)
    assert data.label_names == {"label": ("negative", "positive")}
    assert set(data.splits) == {"train", "validation"} and len(data.splits["validation"].rows) == 2
    assert data.splits["train"].where(1) == "glue/sst2/2.0.0 train:1"
    assert data.splits["train"].rows[-1] == rows[-1] and data.splits["train"].rows[:2] == rows[:2]
    with pytest.raises(IndexError):
        data.splits["train"].rows[4]


def test_split_expressions_and_their_fingerprints(glue):
    whole, half = load(glue).splits["train"], load(glue, train="train[:50%]").splits["train"]
    assert len(half.rows) == 2 and half.fingerprint != whole.fingerprint == load(glue).splits["train"].fingerprint


def test_unknown_names_answer_with_the_nearest(glue):
    with pytest.raises(UserError, match=r'data.builder=.*did you mean "glue"'):
        load(glue, builder="gleu/sst2")
    with pytest.raises(UserError, match=r'data.builder=.*did you mean "sst2"'):
        load(glue, builder="glue/sst22")
    with pytest.raises(UserError, match=r"9\.9\.9"):
        load(glue, builder="glue/sst2:9.9.9")
    with pytest.raises(UserError, match=r'data.validation=.*did you mean "validation"'):
        load(glue, validation="validaton")


def test_without_a_network_there_is_one_error_at_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(UserError, match=r"cannot reach .*Connect to the network"):
        load(str(tmp_path), builder="imdb_reviews")
    assert not list(tmp_path.rglob("*.array_record*"))


def test_bytes_that_are_not_text_are_a_bad_row():
    from jaxft.data.source import plain

    with pytest.raises(BadRow, match="UTF-8"):
        plain({"text": b"\xff"})


def test_neither_tensorflow_nor_jax_is_imported():
    code = (
        "import sys; from jaxft.data.tfds import library_with_text; library_with_text()\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_stay_the_bytes_of_their_files(tmp_path, monkeypatch):
    """So that labels are read without decoding; a data_dir with a small cifar10, made as that of glue is."""
    from jaxft.data.images import Processor
    from jaxft.data.tfds import library_with_text

    builder = library_with_text().builder("cifar10", data_dir=tmp_path, file_format="array_record")
    shades = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(20)]
    rows = [(str(i), {"id": str(i), "image": image, "label": i % 10}) for i, image in enumerate(shades)]
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, dl: {"train": rows})
    monkeypatch.setattr(type(builder), "url_infos", {})
    builder.download_and_prepare()
    monkeypatch.undo()
    data = load(str(tmp_path), "cifar10", train="train[:80%]", validation="train[80%:]")
    read = Processor(side=32, channels=3, resample=None, factor=1.0, mean=(), std=()).pixels
    for row in data.splits["train"].rows:
        assert row["image"].startswith(b"\x89PNG") and row["label"] == int(row["id"]) % 10
        assert (read(row["image"]) == [int(row["id"]), 0, 0]).all()


def test_the_languages_of_a_translation_are_columns(tmp_path):
    import tensorflow_datasets

    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012

        def _info(self):
            features = tensorflow_datasets.features.Translation(languages=("de", "en"))
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"de": f"Stück {i}", "en": f"piece {i}"}) for i in range(3))}

        def _generate_examples(self):
            raise NotImplementedError

    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    data = tfds(builder="tiny", data_dir=str(tmp_path), train="train", validation="", test="")
    rows = sorted(data.splits["train"].rows, key=lambda row: row["en"])
    assert rows == [{"de": f"Stück {i}", "en": f"piece {i}"} for i in range(3)]
