"""The tokenizers of Marian: a sentencepiece model for each side, and one vocabulary that numbers the pieces of both.

They are made into tokenizers like any other. Every piece of the vocabulary has its number in both; one that the model
of a side does not know costs there what as many unknown letters do. So a letter that only the other side knows has its
number, as in transformers, where several such letters in a row would be one unknown token.
"""

from pathlib import Path
from typing import Any

from jaxft.hf import files
from jaxft.registry import UserError

SIDES = ("source.spm", "target.spm")
VOCAB = "vocab.json"
UNKNOWN, END, PAD = "<unk>", "</s>", "<pad>"
SPECIAL = {"unk_token": UNKNOWN, "eos_token": END, "pad_token": PAD}  # where the folder's files name none
SPACE = "\u2581"  # what sentencepiece writes for a space
UNIGRAM, NORMAL = 1, 1  # kinds of models and of pieces
PENALTY = 10.0  # by how much an unknown letter is less likely than the least likely piece (sentencepiece's own number)


def is_marian(folder: Path) -> bool:
    return all((folder / name).exists() for name in (*SIDES, VOCAB))


def tokenizer(folder: Path, side: str) -> Any:
    """The tokenizer of texts of one of SIDES, with an end-of-text token behind each.

    A language code before a text (">>deu<<") is one token. Raises UserError for a model that is not of unigrams, and
    for a folder whose sides have vocabularies of their own.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = files.read_json(folder, VOCAB)
    if (folder / "target_vocab.json").exists():
        raise UserError(f"{folder} has a vocabulary for each side, which is not supported; take a model with one")
    for token in (UNKNOWN, END):
        if token not in ids:
            raise UserError(f"{folder / VOCAB} has no {token}")
    model = _model(folder, side)
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    unknown = min(scores.values()) - PENALTY
    pieces = [(token, scores.get(token, unknown * max(1, len(token)))) for token in _in_order(ids, folder)]
    made: Any = Tokenizer(models.Unigram(pieces, unk_id=ids[UNKNOWN], byte_fallback=False))
    made.normalizer = _normalizer(model.normalizer_spec)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    made.add_special_tokens([token for token in (UNKNOWN, END, PAD) if token in ids])
    codes = [token for token in ids if token.startswith(">>") and token.endswith("<<")]
    made.add_tokens([AddedToken(code, normalized=False) for code in codes])
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return made


def _model(folder: Path, side: str) -> Any:
    """The sentencepiece model.

    Its format is read by the description that transformers would take: protobuf allows a process no second one.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    description: Any = import_protobuf()
    model = description.ModelProto()
    try:
        model.ParseFromString(files.inside(folder, side).read_bytes())
    except DecodeError as error:
        raise UserError(f"{folder / side} is not a sentencepiece model: {error}") from None
    if model.trainer_spec.model_type != UNIGRAM or not any(piece.type == NORMAL for piece in model.pieces):
        raise UserError(f"{folder / side} is not a sentencepiece model of unigrams; no other is supported for Marian")
    return model


def _in_order(ids: dict[str, int], folder: Path) -> list[str]:
    """The tokens by number. Raises UserError where a number is missing or taken twice."""
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"{folder / VOCAB} does not number its tokens from 0 on, each by a number of its own")
    return tokens


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
