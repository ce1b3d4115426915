"""What every registered data set promises, on real content."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxft.corpora.shards import Ready, write
from jaxft.data import DATASETS
from jaxft.data.docstrings import LIBRARIES
from jaxft.data.prepared import INDEX, Index
from jaxft.data.source import Dataset
from jaxft.registry import call

SECTIONS = {
    "docchat": dict(data_dir=""),
    "docpairs": dict(data_dir=""),
    "docstrings": dict(data_dir=""),
    "tfds": dict(builder="tiny", train="train", validation="train[:50%]", test=""),
    "files": dict(validation="", test="", holdout=0.2),
    "number_words": dict(numbers=500),
    "parallel": dict(validation="", test="", holdout=0.2),
    "digits": dict(),
    "pycode": dict(),
    "summaries": dict(data_dir=""),
    "docquestions": dict(data_dir=""),
    "library_choices": dict(data_dir=""),
    "images": dict(train="train", validation="", test="", holdout=0.2),
    "prepared": dict(),
}


def make_tiny(folder):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012

        def _info(self):
            label = tfds.features.ClassLabel(names=["no", "yes"])
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"text": f"text {i} é", "label": i % 2}) for i in range(50))}

        def _generate_examples(self):
            raise NotImplementedError

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


def make_images(folder):
    from PIL import Image

    for i in range(50):
        path = folder / ("odd" if i % 2 else "even") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (i, 0, 0)).save(path)


def make_prepared(folder):
    """A corpus as jaxft.prepare leaves it."""
    shards = {}
    encoder = SimpleNamespace(encode_documents=lambda texts: [SimpleNamespace(ids=np.arange(len(t))) for t, _ in texts])
    for split, count in (("train", 30), ("validation", 20)):
        ready = iter([Ready(split, 0, i + 1, f"text {i} é") for i in range(count)])
        shards[split] = [write(ready, encoder, folder, folder, 0, [split], "<u2")[split]]
    (folder / INDEX).write_text(Index(shards, ["corpus.txt"], "<u2").text())


@pytest.fixture(params=DATASETS)
def dataset(request, tmp_path) -> Dataset:
    section = {"name": request.param, **SECTIONS[request.param]}
    if request.param == "tfds":
        make_tiny(tmp_path)
        section["data_dir"] = str(tmp_path)
    if request.param == "files":
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps({"text": f"text {i} é", "label": i % 2}) + "\n" for i in range(50)))
        section["train"] = str(path)
    if request.param == "prepared":
        make_prepared(tmp_path)
        section["folder"] = str(tmp_path)
    if request.param == "parallel":
        for language in ("de", "en"):
            (tmp_path / language).write_text("".join(f"{language} {i} é\n" for i in range(50)))
        section["train"] = f"{tmp_path}/{{de,en}}"
    if request.param == "images":
        make_images(tmp_path / "train")
        section["folder"] = str(tmp_path)
    return call(DATASETS, section, "data")


def is_pair(row):
    return any(pair <= row.keys() for pair in ({"source", "target"}, {"de", "en"}, {"text", "summary"}))


def test_rows_are_plain_random_access_and_repeatable(dataset):
    assert {"train", "validation"} <= set(dataset.splits) and dataset.name
    for split in dataset.splits.values():
        count = len(split.rows)
        assert count > 0 and not split.bad
        for index in {0, count // 2, count - 1}:
            row = split.rows[index]
            again = split.rows[index]
            if "ids" in row:
                assert (
                    np.array_equal(row["ids"], np.arange(len(f"text {index} é")))
                    and row["bytes"] == len(row["ids"]) + 1
                )
                assert split.where(index) == f"corpus.txt:{index + 1}" and len(again["ids"]) == len(row["ids"])
                continue
            if "tokens" in row:
                assert row == again and len(row["tokens"]) == len(row["tags"]) and split.where(index)
                continue
            if "messages" in row:
                said = [message["content"] for message in row["messages"]]
                assert row == again and len(said) % 2 == 0 and all(said) and split.where(index)
                continue
            if "choices" in row:
                choices = row["choices"]
                assert row == again and len(set(choices)) == 4 and split.where(index)
                assert choices[row["label"]] in LIBRARIES and row["text"]
                continue
            if is_pair(row):
                assert row == again and split.where(index)
                assert all(type(row[name]) is str and row[name] for name in row if name != "number")
                continue
            if "chosen" in row:
                assert row == again and row["prompt"] and row["chosen"] != row["rejected"] and split.where(index)
                continue
            if "question" in row:
                (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
                assert row == again and row["context"][start:].startswith(text) and split.where(index)
                continue
            assert type(row["label"]) in (int, str) and ({"text", "image"} & row.keys())
            assert all(np.array_equal(again[name], value) for name, value in row.items()) and split.where(index)
            assert type(row["text"]) is str if "text" in row else isinstance(row["image"], (str, np.ndarray))
        with pytest.raises(IndexError):
            split.rows[count]
    assert len({split.fingerprint for split in dataset.splits.values()}) == len(dataset.splits)


def test_class_labels_have_names(dataset):
    for column, names in dataset.label_names.items():
        assert len(set(names)) == len(names)
        for split in dataset.splits.values():
            assert all(0 <= split.rows[i][column] < len(names) for i in range(min(len(split.rows), 100)))


def test_docstrings_are_thirty_thousand_distinct_texts_of_all_libraries():
    data = call(DATASETS, {"name": "docstrings", "data_dir": ""}, "data")
    rows = {name: list(split.rows) for name, split in data.splits.items()}
    texts = [row["text"] for part in rows.values() for row in part]
    assert 25_000 < len(texts) < 40_000 and len(set(texts)) == len(texts)
    assert data.label_names["label"] == tuple(sorted(LIBRARIES))
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(rows[name]) / len(texts) - share) < 0.01
        assert {row["label"] for row in rows[name]} == set(range(len(LIBRARIES)))
    again = call(DATASETS, {"name": "docstrings", "data_dir": ""}, "data")
    assert again.splits["test"].fingerprint == data.splits["test"].fingerprint


@pytest.mark.parametrize(
    ("number", "de", "en"),
    [
        (1, "eins", "one"),
        (21, "einundzwanzig", "twenty-one"),
        (30, "dreißig", "thirty"),
        (101, "einhunderteins", "one hundred and one"),
        (1001, "eintausendeins", "one thousand and one"),
        (16_371, "sechzehntausenddreihunderteinundsiebzig", "sixteen thousand three hundred and seventy-one"),
        (101_000, "einhunderteintausend", "one hundred and one thousand"),
        (
            423_007,
            "vierhundertdreiundzwanzigtausendsieben",
            "four hundred and twenty-three thousand and seven",
        ),
    ],
)
def test_numbers_are_said_as_both_languages_say_them(number, de, en):
    from jaxft.data.number_words import english, german

    assert (german(number), english(number)) == (de, en)


def test_no_number_has_the_words_of_another():
    from jaxft.data.number_words import MOST, english, german

    numbers = range(0, MOST + 1, 97)
    assert len(set(map(german, numbers))) == len(set(map(english, numbers))) == len(numbers)


def test_summaries_are_the_first_lines_and_those_of_the_test_are_new():
    whole, data = (call(DATASETS, {"name": name, "data_dir": ""}, "data") for name in ("docstrings", "summaries"))
    texts = {row["text"] for row in whole.splits["test"].rows}
    told = {name: [row["summary"] for row in split.rows] for name, split in data.splits.items()}
    assert len(told["train"]) > 5_000 and 500 < len(told["test"]) == len(set(told["test"]))
    assert not set(told["test"]) & {*told["train"], *told["validation"]}
    assert all(
        any(f"{row['summary']}\n\n{gap}{row['text']}" in texts for gap in ("", "\n", " ", "    "))
        for row in data.splits["test"].rows[:50]
    )
