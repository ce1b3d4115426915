"""The tokenizers of Marian against transformers' own, and what is not one of them."""

import json
import shutil
import subprocess
import sys

import pytest

from jaxft.data.number_words import number_words
from jaxft.hf import marian, tokenizer
from jaxft.registry import UserError
from tests.program import ROOT

OTHERS = {"de": ["Der Hund läuft über die Straße."] * 3, "en": ["apples @ 100%, by the street ..."] * 3}
TEXTS = [
    "zweihundert und drei",
    "  two   streets  ",
    "",
    ">>deu<< the dog",
    "a\tb\nc",
    "one street @ Öl",
    "ﬁ…",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models of sentencepiece, numbered by one vocabulary in no order of theirs."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the reference of sentencepiece models")
    folder, vocab = tmp_path_factory.mktemp("marian"), {"</s>": 0, "<unk>": 1}
    rows = number_words(numbers=300).splits["train"].rows
    for language, side in zip(("de", "en"), marian.SIDES, strict=True):
        (folder / "x.txt").write_text("\n".join([*(row[language] for row in rows), *OTHERS[language]]))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "x.txt"),
            model_prefix=str(folder / "x"),
            vocab_size=110,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / "x.model").rename(folder / side)
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / side))
        for i in reversed(range(3, model.get_piece_size())):
            vocab.setdefault(model.id_to_piece(i), len(vocab))
    vocab |= {">>deu<<": len(vocab), "<pad>": len(vocab) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    said = {"source_lang": "de", "target_lang": "en", "tokenizer_class": "MarianTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return folder


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_both_sides_read_and_write_as_those_of_transformers(folder):
    from transformers import MarianTokenizer

    theirs = MarianTokenizer.from_pretrained(folder)
    source, target = tokenizer.load(folder), tokenizer.load(folder, target=True)
    assert source.whole(TEXTS)[1].tolist() != target.whole(TEXTS)[1].tolist()
    for text, ids, target_ids in zip(TEXTS, source.whole(TEXTS), target.whole(TEXTS), strict=True):
        assert ids.tolist() == theirs(text).input_ids, text
        assert target_ids.tolist() == theirs(text_target=text).input_ids, text
        assert target.text(target_ids) == theirs.decode(target_ids.tolist(), skip_special_tokens=True), text


OURS = "tokenizer.load(folder)"
THEIRS = "SentencePieceExtractor(str(folder / 'source.spm'))"


@pytest.mark.parametrize(("first", "second"), [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_a_process_may_read_models_by_jaxft_and_by_the_converter_of_transformers(folder, first, second):
    """protobuf knows one description of a format a process: a second one that differs is an error, in either order."""
    code = f"""
import sys
from pathlib import Path
from transformers.convert_slow_tokenizer import SentencePieceExtractor
from jaxft.hf import tokenizer
folder = Path(sys.argv[1])
{first}
{second}
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_special_tokens_are_known_without_a_file_that_names_them(folder):
    encoder = tokenizer.load(folder)
    assert (encoder.named["eos_token"], encoder.named["unk_token"]) == (0, 1)
    assert encoder.pad_id == encoder.vocab_size - 1 and encoder.pad_token == "<pad>"


def test_a_copy_is_the_same_tokenizer(folder, tmp_path):
    copied = tokenizer.copy_files(folder, tmp_path, 48)
    assert {*marian.SIDES, "vocab.json", "tokenizer_config.json"} == set(copied)
    for target in (False, True):
        ours, again = (tokenizer.load(place, target=target).whole(TEXTS) for place in (folder, tmp_path))
        assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in again]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("source.spm", b"\xff\xff", "is not a sentencepiece model"),
        ("source.spm", b"", "is not a sentencepiece model of unigrams"),
        ("vocab.json", b'{"<unk>": 0, "</s>": 2}', "does not number its tokens from 0 on"),
        ("vocab.json", b'{"a": 0}', "has no <unk>"),
        ("target_vocab.json", b"{}", "a vocabulary for each side, which is not supported"),
    ],
)
def test_what_is_no_tokenizer_of_marian_is_refused(folder, tmp_path, name, content, message):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        tokenizer.load(broken)
