"""Tokenizers trained on a run's own texts, where no checkpoint brings one."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxft import atomic
from jaxft.hf.chat import FILE as TEMPLATE
from jaxft.hf.tokenizer import CONFIG, SENTINEL, TOKENIZER, TextEncoder, load
from jaxft.registry import UserError

TRAINERS = {
    "wordpiece": "jaxft.hf.trainers:wordpiece",
    "bpe": "jaxft.hf.trainers:bpe",
    "chat": "jaxft.hf.trainers:chat",
    "char": "jaxft.hf.trainers:char",
    "sentinels": "jaxft.hf.trainers:sentinels",
    "seq2seq": "jaxft.hf.trainers:seq2seq",
}

ALPHABET = 1000  # letters that WordPiece keeps, the most frequent ones; words with any other letter become [UNK]
BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
END, UNKNOWN = "<|endoftext|>", "<|unknown|>"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def wordpiece(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """Trains BERT's WordPiece tokenizer of at most `vocab` ids on `texts`; writes it for transformers into `folder`.

    `positions` is the longest input of the model that it is for. The texts are held in memory: they are read twice.
    The same texts give the same file. `folder` appears complete or not at all; raises UserError where it holds files.
    Source: Devlin et al. 2018; Wu et al. 2016, section 4.1.
    """
    from tokenizers import Tokenizer, decoders, models, processors

    held = list(texts)
    # The trainer numbers the pieces inside words ("##a") in the order of a randomly seeded hash table, and breaks ties
    # between merges by those numbers, so that every run gives another vocabulary. Given as special tokens they come
    # first, in our order.
    special = list(BERT.values())
    inside = sorted(piece for piece in _wordpieces(held, 0, special, lowercase) if piece.startswith("##"))
    pieces = _wordpieces(held, vocab, special + inside, lowercase)

    tokenizer: Any = Tokenizer(models.WordPiece(pieces, unk_token=BERT["unk_token"], max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _splitting(lowercase)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    cls, sep = BERT["cls_token"], BERT["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, pieces[token]) for token in (cls, sep)],
    )
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "clean_up_tokenization_spaces": True,
    }
    ids = tokenizer.get_vocab(with_added_tokens=True)
    # What version 4 of transformers may rebuild the tokenizer from.
    vocab_txt = "".join(f"{token}\n" for token in sorted(ids, key=lambda token: ids[token]))
    return _write(tokenizer, folder, config, BERT, positions, {"vocab.txt": vocab_txt})


def bpe(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """Trains GPT-2's byte-level BPE of at most `vocab` ids: any text is made of its 256 bytes, none is unknown.

    Otherwise as `wordpiece`. Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016.
    """
    special = {which: END for which in ("bos_token", "eos_token", "pad_token")}
    return _write(_byte_pairs(texts, vocab, lowercase, [END]), folder, FAST, special, positions)


def seq2seq(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """As `bpe`, with the special tokens of an encoder-decoder: padding is 0, the end of a text 1, behind every text."""
    return _ended(texts, vocab, lowercase, [], folder, positions)


def sentinels(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """As `seq2seq`, with the hundred sentinels of a T5 beside the other special tokens."""
    return _ended(texts, vocab, lowercase, [SENTINEL.format(i) for i in range(100)], folder, positions)


def _ended(
    texts: Iterable[str], vocab: int, lowercase: bool, marks: list[str], folder: Path, positions: int
) -> TextEncoder:
    from tokenizers import processors

    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = _byte_pairs(texts, vocab, lowercase, [*special.values(), *marks])
    end = special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return _write(tokenizer, folder, FAST, special, positions)


# Writes <|user|>hello<|end|><|assistant|>hi<|end|>, with tools as JSON before the first turn.
CHAT = """\
{%- if tools %}{{ '<|tools|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- for message in messages %}
{%- set role = 'system' if message.role == 'developer' else message.role %}
{{- '<|' + role + '|>' }}
{%- if role == 'assistant' %}
{%- generation %}{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ '<|call|>' + call.function | tojson }}{% endfor %}
{{- '<|end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
MARKS = tuple(f"<|{name}|>" for name in ("system", "user", "assistant", "tool", "tools", "call"))


def chat(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """As `bpe`, with special tokens for who speaks and for the end of a turn, and a chat template that writes them."""
    special = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
    tokenizer = _byte_pairs(texts, vocab, lowercase, [*special.values(), *MARKS])
    return _write(tokenizer, folder, FAST, special, positions, {TEMPLATE: CHAT})


def _byte_pairs(texts: Iterable[str], vocab: int, lowercase: bool, special: list[str]) -> Any:
    """A byte-level BPE whose first ids are `special`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def char(texts: Iterable[str], *, vocab: int, lowercase: bool, folder: Path, positions: int = 512) -> TextEncoder:
    """A token for each of the `vocab` most frequent characters of `texts`. Otherwise as `wordpiece`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.lower() if lowercase else text)
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))[: max(0, vocab - 2)]
    ids = {token: i for i, token in enumerate([END, UNKNOWN, *sorted(letters)])}
    tokenizer: Any = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END, UNKNOWN])
    special = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    return _write(tokenizer, folder, FAST, special, positions)


def _wordpieces(texts: list[str], vocab: int, first: list[str], lowercase: bool) -> dict[str, int]:
    """Piece -> id: `first` in order, then every letter of `texts`, then merges up to `vocab` ids."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer: Any = Tokenizer(models.WordPiece(unk_token=BERT["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _splitting(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=first, limit_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _splitting(lowercase: bool) -> tuple[Any, Any]:
    """BERT's normalizer and pre-tokenizer; accents are stripped where letters are made lower case."""
    from tokenizers import normalizers, pre_tokenizers

    return normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()


def _write(
    tokenizer: Any,
    folder: Path,
    config: Mapping[str, Any],
    special: Mapping[str, str],
    positions: int,
    beside: Mapping[str, str] | None = None,
) -> TextEncoder:
    """Writes what both transformers 4 and 5 read, and files `beside`. Raises UserError where there are some already."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; a new tokenizer needs a folder of its own")
    config = {**config, "model_max_length": positions, **special}
    with atomic.folder(folder.absolute()) as new:
        for name, value in ((CONFIG, config), ("special_tokens_map.json", dict(special))):
            (new / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        for name, text in {**(beside or {}), TOKENIZER: tokenizer.to_str(pretty=True)}.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
    return load(folder)
