"""Tokenizers: trained here, opened by transformers with the same ids, and refused when they cannot be right."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxft.hf import tokenizer, trainers
from jaxft.registry import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A docstring says what a function does, not how it does it!",
    "Café naïve résumé: straße, 東京 and emoji \U0001f600.",
    "",
    "unseen wörds and [SEP] inside",
]


def corpus():
    return iter(TEXTS * 20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, trainers.wordpiece(corpus(), vocab=150, lowercase=True, folder=folder, positions=64)


def test_special_tokens_come_first_and_padding_is_zero(trained):
    _, encoder = trained
    assert encoder.pad_id == 0 and encoder.vocab_size <= 150
    assert [encoder.tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_gives_the_same_ids_types_and_truncation(tmp_path, lowercase):
    from transformers import AutoTokenizer

    encoder = trainers.wordpiece(corpus(), vocab=150, lowercase=lowercase, folder=tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    examples = [(text, None) for text in TEXTS]
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    for length in (4, 12, 500):
        for given in (examples, pairs):
            columns = [a for a, _ in given], None if given is examples else [b for _, b in given]
            whole, cut = theirs(*columns), theirs(*columns, truncation=True, max_length=length)
            rows = zip(cut["input_ids"], cut["token_type_ids"], whole["input_ids"], strict=True)
            for ours, (ids, types, uncut) in zip(encoder.encode(given, length), rows, strict=True):
                assert ours.ids.tolist() == ids and ours.types.tolist() == types
                assert ours.truncated == (len(uncut) > length)
    assert theirs.pad_token_id == encoder.pad_id and theirs.mask_token == "[MASK]"


def test_ids_and_types_have_the_tokenizers_own_range(trained):
    one = trained[1].encode([("a fox", "a dog")], 10)[0]
    assert one.ids.dtype == one.types.dtype == np.uint32
    assert one.types.tolist() == [0] * (one.types.tolist().index(1)) + [1] * int(one.types.sum())


def test_an_empty_text_is_its_special_tokens(trained):
    assert [one.ids.tolist() for one in trained[1].encode([("", None), ("", "")], 8)] == [[2, 3], [2, 3, 3]]


def test_a_length_without_room_for_text_is_refused(trained):
    with pytest.raises(UserError, match="a length of 3 has no room for text: 3 tokens"):
        trained[1].encode([("a", "b")], 3)


def test_training_again_in_another_process_gives_the_same_file(trained, tmp_path):
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_tokenizer as t; "
        "folder = pathlib.Path(sys.argv[2]); "
        "t.trainers.wordpiece(t.corpus(), vocab=150, lowercase=True, folder=folder, positions=64)"
    )
    for run in ("one", "two"):
        subprocess.run([sys.executable, "-c", program, Path(__file__).parent, tmp_path / run], check=True)
        for file in trained[0].iterdir():
            assert (tmp_path / run / file.name).read_bytes() == file.read_bytes()


def test_a_folder_in_use_is_not_overwritten(trained):
    with pytest.raises(UserError, match="is not empty"):
        trainers.wordpiece(corpus(), vocab=150, lowercase=True, folder=trained[0])


def test_a_folder_with_only_vocab_txt_is_opened_through_transformers(trained, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(trained[0] / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    encoder = tokenizer.load(tmp_path)
    for ours, theirs in zip(
        encoder.encode([(text, None) for text in TEXTS], 64),
        trained[1].encode([(text, None) for text in TEXTS], 64),
        strict=True,
    ):
        assert ours.ids.tolist() == theirs.ids.tolist()
    assert encoder.fingerprint != trained[1].fingerprint


def test_settings_stored_in_the_file_do_not_leak_into_encoding(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    stored["padding"] = {
        **{"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    found = tokenizer.load(tmp_path).encode([(TEXTS[0], None)], 64)[0]
    assert found.ids.tolist() == trained[1].encode([(TEXTS[0], None)], 64)[0].ids.tolist()


def test_the_fingerprint_follows_the_content(trained, tmp_path):
    assert tokenizer.load(trained[0]).fingerprint == trained[1].fingerprint
    other = trainers.wordpiece(corpus(), vocab=120, lowercase=True, folder=tmp_path)
    assert other.fingerprint != trained[1].fingerprint


def test_tokenizer_files_are_copied_byte_for_byte_but_for_the_length(trained, tmp_path):
    (trained[0] / "model.safetensors").write_bytes(b"not a tokenizer file")
    names = tokenizer.copy_files(trained[0], tmp_path, max_length=24)
    assert sorted(names) == sorted(file.name for file in tmp_path.iterdir())
    assert sorted(names) == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for name in set(names) - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()
    ours, theirs = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (tmp_path, trained[0]))
    assert ours == theirs | {"model_max_length": 24}
    assert tokenizer.max_length(tmp_path, positions=512) == 24 and tokenizer.max_length(tmp_path, positions=16) == 16


def test_a_tokenizer_larger_than_the_embedding_is_refused(trained):
    encoder = trained[1]
    tokenizer.check_vocab(encoder, encoder.vocab_size)
    with pytest.raises(
        UserError, match=rf"{encoder.vocab_size} ids and the model's embedding {encoder.vocab_size - 1} rows"
    ):
        tokenizer.check_vocab(encoder, encoder.vocab_size - 1)


def test_the_highest_id_counts_not_the_number_of_tokens(trained, tmp_path):
    """Vocabularies have holes: a table of as many rows as there are tokens would be read beyond its end."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["model"]["vocab"]["farid"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert tokenizer.load(tmp_path).vocab_size == 5001


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="has no tokenizer: neither"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{}", b'{"model": {"type": "WordPiece"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer"):
        tokenizer.load(tmp_path)


def test_a_tokenizer_bomb_is_refused_unread(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(tokenizer.TOKENIZER_BYTES + 1)  # sparse: takes no room on the disk
    with pytest.raises(UserError, match="tokenizer files above"):
        tokenizer.load(tmp_path)


JUNK = {
    "lists": b"[],",
    "numbers": b"0,",
    "objects": b"{},",
    "nested": b"[",
    "lines": b"\n",
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_that_would_fill_the_memory_is_refused_without_parsing(tmp_path, monkeypatch, junk, name):
    monkeypatch.setattr(tokenizer, "_from_json", lambda folder, content: pytest.fail("parsed"))
    monkeypatch.setattr(tokenizer, "_from_older", lambda folder: pytest.fail("parsed"))
    (tmp_path / name).write_bytes(b'{"version": "1.0", "model": [' + JUNK[junk] * (tokenizer.TOKENIZER_ITEMS + 1))
    with pytest.raises(UserError, match=rf"{name} has more than 3,000,000 items"):
        tokenizer.load(tmp_path)


def test_junk_within_the_limits_costs_little(tmp_path):
    """In a process of its own, whose memory is limited to what it has and 250 MB."""
    whole = (
        b'{"version":"1.0","model":{"type":"WordPiece","x":[' + b"[]," * (tokenizer.TOKENIZER_ITEMS // 2 - 5) + b"0]}}"
    )
    (tmp_path / "tokenizer.json").write_bytes(whole)
    code = (
        "import pathlib, resource, sys, tokenizers; from jaxft.hf import tokenizer\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 250_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: tokenizer.load(pathlib.Path(sys.argv[1]))\n"
        "except tokenizer.UserError as error: print('refused:', error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.startswith("refused: ") and "is not a tokenizer" in done.stdout, done


def test_a_tokenizer_without_padding_is_refused(trained, tmp_path):
    shutil.copyfile(trained[0] / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="neither a pad_token nor an eos_token"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "<pad>"}}')
    with pytest.raises(UserError, match="'<pad>' is not in the tokenizer's vocabulary"):
        tokenizer.load(tmp_path)


def test_the_end_of_text_pads_where_nothing_else_is_named_and_an_export_says_so(trained, tmp_path):
    for folder in ("hub", "export"):
        (tmp_path / folder).mkdir()
    shutil.copyfile(trained[0] / "tokenizer.json", tmp_path / "hub" / "tokenizer.json")
    (tmp_path / "hub" / "tokenizer_config.json").write_text('{"eos_token": "[SEP]", "model_max_length": 512}')
    assert tokenizer.load(tmp_path / "hub").pad_token == "[SEP]"
    tokenizer.copy_files(tmp_path / "hub", tmp_path / "export", 64)
    written = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "[SEP]", "model_max_length": 64, "pad_token": "[SEP]"}
