"""Text -> token ids, by the Rust tokenizer alone (0.03 s to import, where transformers takes seconds)."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft import atomic
from jaxft.hf import files, marian
from jaxft.labels import NO_LABEL
from jaxft.registry import UserError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEXT_VOCABS = ("vocab.txt", "vocab.json")
VOCABS = (*TEXT_VOCABS, "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
# Every file that any tokenizer of the hub consists of; copied unchanged into an export, so that it stays the same one.
FILES = (
    *(TOKENIZER, CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(*VOCABS, *marian.SIDES),
    *("merges.txt", "bpe.codes"),
)
# The largest on the hub have 35 MB and 2 million brackets and commas. Within these limits junk is refused within a
# second and 200 MB of memory: each item costs the parser up to 60 bytes.
TOKENIZER_BYTES = 50_000_000
TOKENIZER_ITEMS = 3_000_000
SENTINEL = "<extra_id_{}>"  # the marks of T5, counted from 0
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Encoded(NamedTuple):
    """One text or pair: token ids, token types (0 first text, 1 second), and whether it was cut to fit."""

    ids: np.ndarray  # uint32 [length], as the tokenizer has them
    types: np.ndarray  # uint32 [length]
    truncated: bool


class EncodedWords(NamedTuple):
    """As Encoded, of a text given as words; and the place of each word's first token, -1 of a word that has none.

    A word has none where it was cut off, and where the tokenizer leaves nothing of it.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool
    begins: np.ndarray  # int32 [words]

    def tags(self, label: Sequence[int]) -> tuple[np.ndarray, int]:
        """(label of each token, that of a word at its first one and else -100; how many words have no token)."""
        tag_T, found_W = np.full(len(self.ids), NO_LABEL, np.int32), self.begins >= 0
        tag_T[self.begins[found_W]] = np.asarray(label, np.int32)[found_W]
        return tag_T, int(len(found_W) - found_W.sum())


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with its special tokens. `vocab_size` is the highest id + 1; `fingerprint` changes with any file.

    `named`: "eos_token", "mask_token", ... -> id, of those that the folder's files name.
    """

    tokenizer: Any
    vocab_size: int
    pad_token: str
    pad_id: int
    fingerprint: str
    named: Mapping[str, int]

    def encode(self, texts: Sequence[tuple[str, str | None]], max_length: int) -> list[Encoded]:
        """Ids of (text, None) or (text, pair), special tokens included, at most `max_length`, no padding.

        Too long a pair loses tokens from its longer side first. An empty text is its special tokens alone.
        Raises UserError where `max_length` has no room for one token beside the special ones.
        """
        self._cut_at(max_length, pairs=any(pair is not None for _, pair in texts))
        encodings = self.tokenizer.encode_batch_fast([text if pair is None else (text, pair) for text, pair in texts])
        return [
            Encoded(
                np.array(one.ids, np.uint32),
                np.array(one.type_ids, np.uint32),
                # `overflowing` copies what was cut off: asked for only where something may have been.
                len(one.ids) == max_length and bool(one.overflowing),
            )
            for one in encodings
        ]

    def encode_words(self, texts: Sequence[tuple[Sequence[str], str | None]], max_length: int) -> list[EncodedWords]:
        """Ids of (words, None), otherwise as `encode`.

        Byte-level BPE takes a word in a sentence for another one than the same letters at the start of a text: there
        all words get a space before them (add_prefix_space in transformers).
        """
        self._cut_at(max_length, pairs=False)
        space = " " if self.spaced else ""
        sentences = [[f"{space}{word}" for word in words] for words, _ in texts]
        # encode_batch_fast does not tell which word a token is of.
        encodings = self.tokenizer.encode_batch(sentences, is_pretokenized=True)
        return [
            EncodedWords(
                np.array(one.ids, np.uint32),
                np.array(one.type_ids, np.uint32),
                len(one.ids) == max_length and bool(one.overflowing),
                _first_tokens(one.word_ids, len(words)),
            )
            for one, words in zip(encodings, sentences, strict=True)
        ]

    @functools.cached_property
    def spaced(self) -> bool:
        """Whether this is byte-level BPE, which needs a space before each word and adds none itself."""
        return _adds_no_space(json.loads(self.tokenizer.to_str())["pre_tokenizer"])

    def _cut_at(self, max_length: int, pairs: bool) -> None:
        special = self.tokenizer.num_special_tokens_to_add(pairs)
        if max_length <= special:
            raise UserError(
                f"a length of {max_length} has no room for text: {special} tokens of each example are special"
            )
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length, strategy="longest_first")

    def encode_documents(self, texts: Sequence[tuple[str, str | None]]) -> list[Encoded]:
        """Ids of whole texts, special tokens included and an end-of-text token behind each, if there is one."""
        end = self.named.get("eos_token")
        documents = []
        for ids in self.whole([text for text, _ in texts]):
            if end is not None and (not len(ids) or ids[-1] != end):
                ids = np.append(ids, np.int32(end))
            documents.append(Encoded(ids.astype(np.uint32), np.zeros(len(ids), np.uint32), False))
        return documents

    def whole(self, texts: Sequence[str], *, special: bool = True) -> list[np.ndarray]:
        """Ids of each text, however long, int32; with or without the special tokens that the tokenizer adds."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return [np.array(one.ids, np.int32) for one in encodings]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def _first_tokens(word_T: Sequence[int | None], words: int) -> np.ndarray:
    """The place of each word's first token, int32 [words], -1 of a word without one; None: a token of no word."""
    of_T = np.array([-1 if word is None else word for word in word_T], np.int64)
    found, first = np.unique(of_T, return_index=True)
    begins_W = np.full(words, -1, np.int32)
    begins_W[found[found >= 0]] = first[found >= 0]
    return begins_W


def _adds_no_space(step: Any) -> bool:
    """Whether a pre-tokenizer, as tokenizer.json has it, is byte-level and leaves words as they come."""
    if not step:
        return False
    if step["type"] == "Sequence":
        return any(_adds_no_space(one) for one in step["pretokenizers"])
    return step["type"] == "ByteLevel" and not step["add_prefix_space"]


def load(folder: Path, *, target: bool = False) -> TextEncoder:
    """The tokenizer of a model folder: `tokenizer.json`, else what transformers makes of its older files.

    `target`: that of the texts which the model writes, where it is another one, as of Marian.

    Raises UserError where there is none, where it cannot be read, and where nothing can serve as its padding token.
    """
    present = [name for name in FILES if (folder / name).exists()]
    for name in present:
        if (size := files.inside(folder, name).stat().st_size) > TOKENIZER_BYTES:
            raise UserError(f"{folder / name} is {size:,} bytes; tokenizer files above {TOKENIZER_BYTES:,} are refused")
    identity = [TOKENIZER] if TOKENIZER in present else present
    content = [files.inside(folder, name).read_bytes() for name in identity]
    for name, raw in zip(identity, content, strict=True):
        # Of JSON, else of lines; each piece of a sentencepiece model begins with a byte that is a line end, too.
        if max(sum(raw.count(mark) for mark in (b"[", b"{", b",")), raw.count(b"\n")) > TOKENIZER_ITEMS:
            raise UserError(
                f"{folder / name} has more than {TOKENIZER_ITEMS:,} items; such a tokenizer file is refused"
            )
    if TOKENIZER in present:
        tokenizer = _from_json(folder, content[0])
    elif marian.is_marian(folder):
        tokenizer = marian.tokenizer(folder, marian.SIDES[target])
    else:
        tokenizer = _from_older(folder)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    pad = _pad_token(folder, vocab)
    if pad not in vocab:
        raise UserError(f"{folder}: the padding token {pad!r} is not in the tokenizer's vocabulary")
    fingerprint = hashlib.sha256(b"".join(content)).hexdigest()
    named = {which: vocab[token] for which in SPECIAL if (token := special_token(folder, which)) in vocab}
    return TextEncoder(tokenizer, max(vocab.values()) + 1, pad, vocab[pad], fingerprint, named)


def _from_json(folder: Path, content: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(content)
    except ValueError as error:
        raise UserError(f"{folder / TOKENIZER} is not a tokenizer: {error}") from None


def _from_older(folder: Path) -> Any:
    from transformers import AutoTokenizer

    vocabs = [name for name in VOCABS if (folder / name).exists()]
    # Checked here, since without a vocabulary transformers 5 makes up a tokenizer of five tokens.
    if not vocabs:
        raise UserError(f"{folder} has no tokenizer: neither {TOKENIZER} nor any of {', '.join(VOCABS)}")
    try:
        for name in set(vocabs) & set(TEXT_VOCABS):
            files.inside(folder, name).read_text(encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).backend_tokenizer
    except (ValueError, OSError, ImportError, AttributeError) as error:
        raise UserError(f"{folder} has no {TOKENIZER}, and transformers opens no tokenizer there: {error}") from None


# What stands in where no padding token is named, as in most decoders: the one that Llama 3 keeps for this.
SPARE = ("<|finetune_right_pad_id|>",)


def _pad_token(folder: Path, vocab: Mapping[str, int]) -> str:
    """The padding token's text: the one that the files name, else a spare one, else the end-of-text token."""
    pad = special_token(folder, "pad_token")
    if pad is not None:
        return pad
    for token in (*SPARE, special_token(folder, "eos_token")):
        if token is not None and token in vocab:
            return token
    raise UserError(
        f"{folder}: neither a pad_token nor an eos_token in {CONFIG} or special_tokens_map.json; add a pad_token"
    )


def special_token(folder: Path, which: str) -> str | None:
    """A special token's text, from whichever file names it; a token may be a string or an object with `content`."""
    for name in (CONFIG, "special_tokens_map.json"):
        token = files.read_json(folder, name).get(which) if (folder / name).exists() else None
        if token is not None:
            return token["content"] if isinstance(token, dict) else token
    return marian.SPECIAL.get(which) if marian.is_marian(folder) else None


def check_vocab(encoder: TextEncoder, rows: int) -> None:
    """Raises UserError where the tokenizer knows ids that the embedding of `rows` rows does not.

    On an accelerator such a lookup would silently return another row.
    """
    if encoder.vocab_size > rows:
        raise UserError(
            f"the tokenizer has {encoder.vocab_size} ids and the model's embedding {rows} rows; use the tokenizer that"
            " belongs to the model, or train from scratch with a vocabulary of that size"
        )


def copy_files(source: Path, target: Path, max_length: int) -> list[str]:
    """Copies the tokenizer files of `source`, byte for byte, and returns their names.

    Only model_max_length becomes `max_length`, the tokens that the model was trained and measured on: so all who cut
    texts by it read the same ones. And a padding token is named where none was: the one that was trained with.
    """
    present = [name for name in FILES if (source / name).exists()]
    for name in present:
        shutil.copyfile(files.inside(source, name), target / name)
    if CONFIG in present:
        config = files.read_json(source, CONFIG) | {"model_max_length": max_length}
        if special_token(source, "pad_token") is None:
            config["pad_token"] = load(source).pad_token
        (target / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return present


def copy(source: Path, folder: Path, max_length: int) -> None:
    """As `copy_files`, into the new `folder`, which is whole or not there."""
    with atomic.folder(folder) as new:
        copy_files(source, new, max_length)


def max_length(folder: Path, positions: int) -> int:
    """How many tokens of a text to read: the tokenizer's model_max_length, at most the model's `positions`."""
    told = files.read_json(folder, CONFIG).get("model_max_length") if (folder / CONFIG).exists() else None
    return min(told, positions) if isinstance(told, int) and told > 0 else positions
