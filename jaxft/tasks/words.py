"""Words of a row and their tags, from whichever of the usual forms the row has them in."""

import itertools
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxft.registry import BadRow
from jaxft.tasks.text import Row, cell

# Blocks of Chinese characters, each of which is a word of its own, as in BERT.
HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


class Span(NamedTuple):
    """The characters start to end - 1 of a text, and what they are."""

    start: int
    end: int
    label: str


def split(text: str, cuts: Collection[int] = ()) -> list[tuple[int, int]]:
    """(start, end) of the words of a text, parted at white space and `cuts`; punctuation marks and Han are alone."""
    words, start = [], None
    for place, letter in enumerate(text):
        if start is not None and (letter.isspace() or place in cuts or _alone(letter)):
            words.append((start, place))
            start = None
        if _alone(letter):
            words.append((place, place + 1))
        elif start is None and not letter.isspace():
            start = place
    return words if start is None else [*words, (start, len(text))]


def _alone(letter: str) -> bool:
    if letter.isascii():
        return not letter.isalnum() and letter.isprintable() and letter != " "
    return unicodedata.category(letter).startswith("P") or any(low <= ord(letter) <= high for low, high in HAN)


def words_of(row: Row, column: str, cuts: Collection[int] = ()) -> list[str]:
    """The words of a row: a list of them, or of a text what `split` makes of it. Raises BadRow."""
    value = cell(row, column)
    if isinstance(value, str):
        words = [value[start:end] for start, end in split(value, cuts)]
    elif isinstance(value, list):
        words = [str(word) if isinstance(word, int) else word for word in value]
    else:
        raise BadRow(f"{column!r} is {_kind(value)}; it must be a list of words or a text")
    if not words:
        raise BadRow(f"{column!r} has no words")
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip(" \t\r\n"):
            raise BadRow(f"{column!r}: word {number} is {_kind(word) if not isinstance(word, str) else 'empty'}")
    return words


def tagged(row: Row, text: str, label: str) -> tuple[list[str], list[Any]]:
    """(words, a tag for each) of a row that has lists of both, or a text and the spans in it. Raises BadRow."""
    tags = cell(row, label)
    if not isinstance(tags, list):
        raise BadRow(f"{label!r} is {_kind(tags)}; it must be a list, of a tag for each word or of spans in a text")
    if isinstance(cell(row, text), str):
        spans = _spans(tags, label, row[text])
        cuts = {border for span in spans for border in span[:2]}
        return words_of(row, text, cuts), _tags(spans, [start for start, _ in split(row[text], cuts)])
    words = words_of(row, text)
    if len(words) != len(tags):
        raise BadRow(f"{len(words)} words in {text!r}, but {len(tags)} tags in {label!r}")
    return words, tags


def _spans(values: list[Any], label: str, text: str) -> list[Span]:
    """In order; with text between their borders, and none within another."""
    spans = []
    for value in values:
        if not isinstance(value, Mapping) or not {"start", "end", "label"} <= value.keys():
            raise BadRow(f"{label!r} of a text must be a list of spans {{start, end, label}}; it has {value!r}")
        span = Span(value["start"], value["end"], value["label"])
        if type(span.start) is not int or type(span.end) is not int or not 0 <= span.start < span.end <= len(text):
            raise BadRow(f"{label!r}: the span {span.start}-{span.end} is not within the text's {len(text)} characters")
        if not isinstance(span.label, str) or not span.label:
            raise BadRow(f"{label!r}: the span {span.start}-{span.end} has the label {span.label!r}")
        if not text[span.start : span.end].strip():
            raise BadRow(f"{label!r}: the span {span.start}-{span.end} is white space")
        spans.append(span)
    spans.sort()
    for before, after in itertools.pairwise(spans):
        if after.start < before.end:
            raise BadRow(
                f"{label!r}: the spans {before.start}-{before.end} and {after.start}-{after.end} overlap; "
                "a word has one tag"
            )
    return spans


def _tags(spans: list[Span], starts: list[int]) -> list[str]:
    """B, I and O of words that begin at these characters, of a text that is cut at the borders of its spans."""
    tags, waiting = [], list(reversed(spans))
    begun = False
    for start in starts:
        while waiting and waiting[-1].end <= start:
            waiting.pop()
            begun = False
        if waiting and waiting[-1].start <= start:
            tags.append(f"{'I' if begun else 'B'}-{waiting[-1].label}")
            begun = True
        else:
            tags.append("O")
    return tags


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
