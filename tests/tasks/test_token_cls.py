"""Tags of words: what a row may look like, what is refused, and that packing changes nothing."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data import pack, pipeline, tokens
from jaxft.data.source import Split
from jaxft.hf import tokenizer, trainers
from jaxft.registry import BadRow, UserError
from jaxft.tasks import task_from_hf
from jaxft.tasks.token_cls import TokenCls
from jaxft.tasks.words import split as split_text

CLASSES = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
TEXT = "Mr. O'Neil left New York."
SPANS = [{"start": 16, "end": 24, "label": "LOC"}, {"start": 4, "end": 10, "label": "PER"}]


def task(**options):
    return TokenCls(**{"text": "tokens", "label": "tags", "metric": "", "smoothing": 0.0, "classes": CLASSES} | options)


def rows_of(*tags, **more):
    return [{"tokens": [f"w{i}" for i in range(len(one))], "tags": list(one), **more} for one in tags]


def split(rows):
    return Split(rows, "x", lambda i: f"x.jsonl:{i + 1}")


def fit(*tags, names=None, **options):
    splits = {"train": split(rows_of(*tags))}
    return task(classes=(), **options).fit(splits, names or {})


def test_classes_are_those_of_the_data_and_of_entities_all_that_can_be():
    assert fit(["B-x", "O"], ["B-y", "I-y"]).classes == ("B-x", "B-y", "I-x", "I-y", "O")
    assert fit(["S-x", "O"]).classes == ("B-x", "I-x", "O", "S-x")
    plain = fit(["NOUN", "VERB"])
    assert plain.classes == ("NOUN", "VERB") and plain.metric == "accuracy" and fit(["B-x", "O"]).metric == "f1"
    assert fit([1, 0], names={"tags": ("O", "B-x", "I-x")}).classes == ("O", "B-x", "I-x")
    with pytest.raises(UserError, match="single tag"):
        fit(["O", "O"])
    with pytest.raises(UserError, match=r"task.metric='f1' is not known here; known: accuracy"):
        fit(["NOUN", "VERB"], metric="f1")


def test_a_slip_among_tags_of_entities_is_a_bad_row_and_no_class():
    """Or else one B_LOC would make the run one that scores words, and export a class of that name."""
    rows = rows_of(["B-LOC", "I-LOC", "O"], ["B-PER", "B_LOC"], ["X-PER", "B-"])
    fitted = task(classes=()).fit({"train": split(rows)}, {})
    assert fitted.classes == CLASSES and fitted.metric == "f1"
    with pytest.raises(BadRow, match=r"label 'B_LOC' is not one of the 5 classes; did you mean \"B-LOC"):
        fitted.example(rows[1])
    wanted = (*CLASSES, "B_LOC")
    assert task(classes=wanted).fit({"train": split(rows[:2])}, {}).classes == wanted, "who names it means it"


def test_a_row_of_lists_has_a_class_for_each_word_and_of_no_labels_the_numbers_of_the_words():
    (row,) = rows_of(["B-LOC", "I-LOC", "O"])
    assert task().example(row) == (["w0", "w1", "w2"], None, [0, 2, 4])
    assert task().example({"tokens": row["tokens"]}, labelled=False) == (["w0", "w1", "w2"], None, [0, 1, 2])


def test_spans_of_a_text_become_tags_of_its_words():
    example = task(text="text", label="spans").example({"text": TEXT, "spans": SPANS})
    words = dict(zip(enumerate(example.text), (CLASSES[i] for i in example.label), strict=True))
    tagged = {word: tag for (_, word), tag in words.items() if tag != "O"}
    assert tagged == {"O": "B-PER", "'": "I-PER", "Neil": "I-PER", "New": "B-LOC", "York": "I-LOC"}
    assert example.text == ["Mr", ".", "O", "'", "Neil", "left", "New", "York", "."]


def test_a_word_is_cut_where_a_span_ends_and_two_that_touch_are_two():
    spans = [{"start": 0, "end": 3, "label": "LOC"}, {"start": 3, "end": 6, "label": "LOC"}]
    example = task(text="text", label="spans").example({"text": "abcdefgh", "spans": spans})
    assert example.text == ["abc", "def", "gh"] and [CLASSES[i] for i in example.label] == ["B-LOC", "B-LOC", "O"]


@pytest.mark.parametrize("text", [TEXT, "  a-b\tc_d \n(e) ", "naïve \u2013 “x” 1.5€", "我爱 you北京!", "", "a\u00a0b"])
def test_a_text_is_split_as_bert_splits_it(text):
    from tokenizers import normalizers, pre_tokenizers

    cleaned = normalizers.BertNormalizer(lowercase=False, strip_accents=False).normalize_str(text)
    expected = [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(cleaned)]
    assert [text[start:end] for start, end in split_text(text)] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words in 'tokens', but 1 tags in 'tags'"),
        ({"tokens": [], "tags": []}, "'tokens' has no words"),
        ({"tokens": " ", "tags": []}, "'tokens' has no words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "'tokens': word 2 is empty"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "'tokens': word 2 is empty"),
        ({"tokens": ["a", 1.5], "tags": ["O", "O"]}, "'tokens': word 2 is a float"),
        ({"tokens": 7, "tags": []}, "'tokens' is a int"),
        ({"tokens": ["a"], "tags": "O"}, "'tags' is a str; it must be a list"),
        ({"tokens": ["a"], "tags": ["B-LCO"]}, "label 'B-LCO' is not one of the 5 classes; did you mean \"B-LOC\""),
        ({"tokens": ["a"], "tags": [None]}, "label is empty"),
        ({"tokens": ["a"]}, "no column 'tags'"),
        ({"tokens": "a", "tags": ["O"]}, "must be a list of spans"),
        ({"tokens": "abc", "tags": [{"start": 1, "end": 9, "label": "LOC"}]}, "1-9 is not within the text's 3 char"),
        ({"tokens": "abc", "tags": [{"start": 2, "end": 2, "label": "LOC"}]}, "2-2 is not within"),
        ({"tokens": "a c", "tags": [{"start": 1, "end": 2, "label": "LOC"}]}, "1-2 is white space"),
        ({"tokens": "abc", "tags": [{"start": 0, "end": 2, "label": ""}]}, "has the label ''"),
        (
            {"tokens": "abc", "tags": [{"start": 0, "end": 2, "label": "LOC"}, {"start": 1, "end": 3, "label": "PER"}]},
            "the spans 0-2 and 1-3 overlap",
        ),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(BadRow) as caught:
        task().example(row)
    assert reason in str(caught.value)


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / request.param
    texts = ["the unbelievable film was seen in New York", "words, and words (again)"] * 3
    trainer = {"wordpiece": trainers.wordpiece, "bpe": trainers.bpe}[request.param]
    trainer(texts, vocab=330, lowercase=False, folder=folder)
    return folder, tokenizer.load(folder)


def test_the_first_token_of_each_word_has_its_label_as_in_transformers(encoder):
    from transformers import AutoTokenizer

    folder, ours = encoder
    theirs = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    if ours.spaced:
        theirs.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    rng = np.random.default_rng(0)
    known = ["the", "unbelievable", "film", "New", "Yorkers", "(again)", "xyz", "a-b", "ünder"]
    sentences = [[*rng.choice(known, n)] for n in rng.integers(1, 30, 20)]
    encoded = ours.encode_words([(words, None) for words in sentences], 24)
    assert sum(one.truncated for one in encoded) > 3
    for words, one in zip(sentences, encoded, strict=True):
        reference = theirs(words, is_split_into_words=True, truncation=True, max_length=24)
        assert one.ids.tolist() == reference["input_ids"]
        ids = reference.word_ids()
        first = [ids.index(word) if word in ids else -1 for word in range(len(words))]
        assert one.begins.tolist() == first and (-1 in first) == one.truncated


def test_a_packed_batch_has_the_loss_and_the_words_of_unpacked_ones(encoder):
    _, ours = encoder
    rng = np.random.default_rng(1)
    tags = [[CLASSES[i] for i in rng.integers(0, 5, n)] for n in rng.integers(1, 11, 40)]
    examples = [task().example(row) for row in rows_of(*tags)]
    held = tokens.in_memory(examples, lambda texts: ours.encode_words(texts, 10))
    logits_IC = jnp.asarray(rng.normal(size=(ours.vocab_size, 5)), jnp.float32)  # of a token alone
    results = []
    for most in (1, 4):
        plan = pack.plan(held.lengths, row_length=40, max_segments=most, seed=0)
        meter, args = task().meter(), dict(batch=4, row_length=40, share=pipeline.WHOLE)
        for batch in pipeline.eval_batches(held, plan, **args):
            assert ((batch["weight"] == 1) == (batch["label"] >= 0)).all(), "words count, and nothing else"
            logits_BLC = logits_IC[batch["ids"]]
            seen = {name: np.asarray(value) for name, value in task().seen(logits_BLC, batch).items()}
            meter.update(task().loss(logits_BLC, batch), seen)
        results.append(meter.report())
    assert plan.rows < 20 and results[0]["words"] + results[0]["words_lost"] == sum(map(len, tags))
    assert results[0]["words_lost"] > 0 and held.counts["lost"] == results[0]["words_lost"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert {**results[0], "loss": 0} == {**results[1], "loss": 0}


def test_config_json_gives_the_task_back_by_its_architecture():
    config = json.loads(json.dumps(task().hf_config())) | {"architectures": ["BertForTokenClassification"]}
    again = task_from_hf(config)
    assert again.classes == CLASSES and again.metric == "f1" and (again.text, again.label) == ("tokens", "tags")


def test_predictions_say_tags_of_words_and_where_entities_are():
    logits_WC = np.full((4, 5), np.nan, np.float32)
    logits_WC[[0, 1, 3]] = np.eye(5, dtype=np.float32)[[0, 2, 2]]
    (lists,) = task().predictions([logits_WC], [{"tokens": ["New", "York", "\u200b", "Rome"]}])
    assert lists["tags"] == ["B-LOC", "I-LOC", None, "I-LOC"]
    assert lists["entities"] == [
        {"label": "LOC", "start": 0, "end": 2, "text": "New York"},
        {"label": "LOC", "start": 3, "end": 4, "text": "Rome"},
    ]
    (text,) = task().predictions([logits_WC], [{"tokens": "New  York, Rome"}])
    assert text["words"] == ["New", "York", ",", "Rome"]
    assert text["entities"][0] == {"label": "LOC", "start": 0, "end": 9, "text": "New  York"}
    (plain,) = task(classes=("a", "b", "c", "d", "e")).predictions([logits_WC], [{"tokens": list("wxyz")}])
    assert plain == {"tags": ["a", "c", None, "c"]} and json.loads(json.dumps(text)) == text


def test_a_builder_of_tfds_gives_ids_of_tags_that_have_names(tmp_path):
    import tensorflow_datasets as tfds

    from jaxft.data.tfds import dataset

    class Tagged(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012

        def _info(self):
            tags = tfds.features.ClassLabel(names=["O", "B-x", "I-x"])
            columns = {"tokens": tfds.features.Text(), "ner": tags}
            columns = {name: tfds.features.Sequence(feature) for name, feature in columns.items()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"tokens": ["a", "é"], "ner": [0, 1]}) for i in range(3))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Tagged(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    data = dataset("tagged", builder, {"train": "train"})
    fitted = task(classes=(), label="ner").fit(data.splits, data.label_names)
    assert fitted.classes == ("O", "B-x", "I-x") and fitted.metric == "f1"
    assert fitted.example(data.splits["train"].rows[0]) == (["a", "é"], None, [0, 1])
