"""Every kind of tokenizer that a run from random weights may train, and what a corpus asks of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxft.hf import trainers, vocabulary
from jaxft.hf.trainers import TRAINERS
from jaxft.registry import lookup

TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "Café naïve: straße, 東京!", "words, words and words"]
VOCAB = 400
SPECIAL = {  # ids of the padding, the end of a text, the mask
    "wordpiece": (0, None, 4),
    "bpe": (0, 0, None),
    "char": (0, 0, None),
    "sentinels": (0, 1, None),
    "seq2seq": (0, 1, None),
    "chat": (0, 1, None),
}


def make(name, folder, lowercase=False):
    trainer = lookup(TRAINERS, name, "tokenizer.name")
    return trainer(iter(TEXTS * 20), vocab=VOCAB, lowercase=lowercase, folder=folder, positions=64)


@pytest.fixture(scope="module", params=TRAINERS)
def trained(request, tmp_path_factory):
    """(name, folder, encoder)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, make(request.param, folder)


def test_special_tokens_have_their_places(trained):
    name, _, encoder = trained
    found = vocabulary.of(encoder)
    assert (encoder.pad_id, found.end_id, found.mask_id) == SPECIAL[name] and encoder.vocab_size <= VOCAB
    assert found.sentinels == (tuple(range(2, 102)) if name == "sentinels" else ())
    assert found.special_V[encoder.pad_id] and not found.special_V[-1]


def test_transformers_reads_the_folder_alike(trained):
    from transformers import AutoTokenizer

    _, folder, encoder = trained
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        (ids,) = encoder.whole([text])
        assert ids.tolist() == theirs(text)["input_ids"]
        assert encoder.text(ids) == theirs.decode(ids.tolist(), skip_special_tokens=True)


def test_training_again_in_another_process_gives_the_same_file(trained, tmp_path):
    name, folder, _ = trained
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_trainers as t; "
        "t.make(sys.argv[3], pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, Path(__file__).parent, tmp_path / "again", name], check=True)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_documents_are_whole_and_end_once(trained):
    name, _, encoder = trained
    long = " ".join(TEXTS * 100)
    for text, one in zip(
        [long, *TEXTS], encoder.encode_documents([(text, None) for text in [long, *TEXTS]]), strict=True
    ):
        (ids,) = encoder.whole([text], special=name == "wordpiece")
        end = encoder.named.get("eos_token")
        assert one.ids.tolist() == ids.tolist() + ([] if end is None else [end]) and not one.truncated
        assert one.ids.dtype == one.types.dtype == np.uint32 and len(one.types) == len(one.ids)


def test_a_text_that_brings_its_end_gets_no_other(tmp_path):
    encoder = make("bpe", tmp_path)
    (one,) = encoder.encode_documents([("a fox<|endoftext|>", None)])
    assert (one.ids == encoder.named["eos_token"]).sum() == 1


@pytest.mark.parametrize("name", ["sentinels", "seq2seq"])
def test_of_an_encoder_decoder_every_text_ends_also_one_that_is_cut(name, tmp_path):
    encoder = make(name, tmp_path)
    for one in encoder.encode([(text, None) for text in TEXTS], 5):
        assert len(one.ids) == 5 and one.ids[-1] == encoder.named["eos_token"] and one.truncated


@pytest.mark.parametrize("name", ["bpe", "char", "sentinels", "seq2seq"])
def test_what_is_written_is_what_was_read(name, tmp_path):
    encoder = make(name, tmp_path)
    assert [encoder.text(ids) for ids in encoder.whole(TEXTS)] == TEXTS


def test_words_begin_where_a_space_or_no_hash_mark_says_so(trained):
    name, _, encoder = trained
    begins_V = vocabulary.of(encoder).begins_V
    pieces = [encoder.tokenizer.id_to_token(i) for i in range(encoder.vocab_size)]
    expected = {
        "wordpiece": lambda piece: not piece.startswith("##"),
        "bpe": lambda piece: piece.startswith("\u0120"),
        "sentinels": lambda piece: piece.startswith("\u0120"),
        "seq2seq": lambda piece: piece.startswith("\u0120"),
        "chat": lambda piece: piece.startswith("\u0120"),
        "char": lambda piece: True,
    }[name]
    special_V = vocabulary.of(encoder).special_V
    assert all(begins_V[i] == (bool(special_V[i]) or expected(piece)) for i, piece in enumerate(pieces))


def test_of_characters_the_most_frequent_are_kept_and_others_are_unknown(tmp_path):
    encoder = trainers.char(iter(["aaabbc"]), vocab=4, lowercase=True, folder=tmp_path)
    (ids,) = encoder.whole(["ABC?"])
    assert [encoder.tokenizer.id_to_token(i) for i in ids] == ["a", "b", "<|unknown|>", "<|unknown|>"]
