"""A question and a context that may be longer than a row: read as windows, each the whole question and some context."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxft.hf.tokenizer import TextEncoder
from jaxft.labels import END, NO_LABEL, START
from jaxft.registry import UserError


class Window(NamedTuple):
    """As tokenizer.Encoded; `chars` are where in the context a token begins and ends, -1 for all that is not of it.

    White space at the ends of a token is not counted, and a token of nothing else is none of the context.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool
    chars: np.ndarray  # int32 [length, 2]

    def tags(self, label: Sequence[int] | None) -> tuple[np.ndarray, int]:
        """START and END of the answer (first character, past its last), both at the first token where it is not here.

        No token is marked where nothing is labelled. The second number is 0: what is not here may be in another window.
        """
        tag_T = np.full(len(self.ids), NO_LABEL, np.int32)
        if label is not None:
            first, last = self.place(label[0], label[1]) or (0, 0)
            tag_T[first], tag_T[last] = START, END
            if first == last:
                tag_T[first] = START + END
        return tag_T, 0

    def place(self, begin: int, end: int) -> tuple[int, int] | None:
        """The first and last token of these characters; None of no character, or where they are not all here."""
        of_context = np.flatnonzero(self.chars[:, 0] >= 0)
        first = int(np.searchsorted(self.chars[of_context, 0], begin, side="right")) - 1
        last = int(np.searchsorted(self.chars[of_context, 1], end))
        if begin == end or first < 0 or last == len(of_context) or last < first:
            return None
        return int(of_context[first]), int(of_context[last])


@dataclass(frozen=True)
class Windows:
    """All windows of a question, in order."""

    pieces: list[Window]
    cut: bool  # the question was

    def counts(self, label: Sequence[int] | None) -> Counter[str]:
        """What is said of a split: 1 where it holds of this question. `label`: begin, end, and whether it was moved."""
        begin, end, moved = (0, 0, 0) if label is None else label
        missed = begin < end and not any(piece.place(begin, end) for piece in self.pieces)
        return Counter(long=int(len(self.pieces) > 1), cut=int(self.cut), missed=int(missed), moved=int(moved))


def encode(
    encoder: TextEncoder, texts: Sequence[tuple[str, str]], length: int, *, question: int, stride: int
) -> list[Windows]:
    """Windows of at most `length` tokens of (question, context), special tokens included.

    Of a question the first `question` tokens are read. Neighbouring windows share `stride` tokens of the context.
    Raises UserError where a row of `length` tokens has no room for that.
    """
    tokenizer = encoder.tokenizer
    special = tokenizer.num_special_tokens_to_add(True)
    if length - special - question <= stride:
        raise UserError(
            f"a row of {length} tokens has no room for a question of task.question_length={question}, {special}"
            f" special ones and more of a context than the task.stride={stride} shared; set input.length higher or one "
            "of these lower"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    asked = tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False)
    questions = [_cut(tokenizer, text, one, question) for (text, _), one in zip(texts, asked, strict=True)]
    tokenizer.enable_truncation(length, stride=stride, strategy="only_second")
    pairs = [(text, context) for text, (_, context) in zip(questions, texts, strict=True)]
    return [
        Windows(_pieces(encoding, context), cut=len(read) < len(text))
        for encoding, read, (text, context) in zip(tokenizer.encode_batch(pairs), questions, texts, strict=True)
    ]


def _cut(tokenizer: Any, text: str, encoding: Any, most: int) -> str:
    """The text as far as `most` tokens go, or less far where the last ones become more without the rest."""
    while len(encoding.ids) > most:
        text = text[: encoding.offsets[most][0]]
        encoding = tokenizer.encode(text, add_special_tokens=False)
    return text


def _solid(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every border in a text the next one that no white space follows, and the last one that none precedes."""
    size = len(text)
    blank = np.fromiter(map(str.isspace, text), bool, size)
    place = np.arange(size + 1)
    following = np.where(np.append(blank, False), size, place)
    preceding = np.where(np.append(False, blank), 0, place)
    return np.minimum.accumulate(following[::-1])[::-1], np.maximum.accumulate(preceding)


def _pieces(encoding: Any, context: str) -> list[Window]:
    # Where no post-processor adds special tokens, only the first encoding knows which tokens are of which text; but all
    # have as many of the question and as many special ones.
    of_context = [number == 1 for number in encoding.sequence_ids]
    before = of_context.index(True) if any(of_context) else len(of_context)
    behind = of_context[::-1].index(True) if any(of_context) else 0
    solid = _solid(context)
    return [_window(one, slice(before, len(one.ids) - behind), solid) for one in (encoding, *encoding.overflowing)]


def _window(one: Any, of_context: slice, solid: tuple[np.ndarray, np.ndarray]) -> Window:
    offsets = np.array(one.offsets[of_context], np.int64).reshape(-1, 2)
    following, preceding = solid
    inside = np.stack([following[offsets[:, 0]], preceding[offsets[:, 1]]], -1)
    inside[inside[:, 0] >= inside[:, 1]] = -1
    chars = np.full((len(one.ids), 2), -1, np.int32)
    chars[of_context] = inside
    return Window(np.array(one.ids, np.uint32), np.array(one.type_ids, np.uint32), False, chars)
