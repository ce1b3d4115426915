"""What a rule is given, and what it gives back."""

import functools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Scripts whose words stand without spaces between them: kana and Han; Thai, Lao, Burmese and Khmer.
UNSPACED = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
# How many of such characters a word has, in Chinese about. Rules are written for words: where they count them, so many
# characters stand for one.
CHARACTERS_PER_WORD = 1.5
_IS_UNSPACED = re.compile(f"[{UNSPACED}]")
_UNIT = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio


class Removed(NamedTuple):
    """Why a document goes. `reason` is counted; `detail`, what was measured, is shown beside a sample."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Document:
    """A text on its way through the rules. What several of them ask for is computed once.

    language: ISO 639-1 code, "" before a rule has looked. done: what the last rule did to the text, counted by kind.
    """

    text: str
    language: str = ""
    done: Mapping[str, int] = field(default_factory=dict)

    def changed(self, text: str, **done: int) -> "Document":
        """The same document with another text; itself where it is the same."""
        return self if text == self.text else Document(text, self.language, {k: n for k, n in done.items() if n})

    @functools.cached_property
    def units(self) -> list[str]:
        """What stands between white space; of scripts without spaces each character."""
        if self.text.isascii() or not _IS_UNSPACED.search(self.text):
            return self.text.split()
        return _UNIT.findall(self.text)

    @functools.cached_property
    def unspaced(self) -> bool:
        """Whether most units are characters of a script without spaces."""
        if self.text.isascii():
            return False
        return 2 * len(_IS_UNSPACED.findall(self.text)) > len(self.units)

    @property
    def words(self) -> float:
        """How many words there are, about, where they stand without spaces."""
        return len(self.units) / CHARACTERS_PER_WORD if self.unspaced else len(self.units)

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines with something on them, without the white space around it."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """What stands between empty lines."""
        return [stripped for part in _PARAGRAPHS.split(self.text) if (stripped := part.strip())]

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """A number for each unit, uint64 [units]; equal units have equal numbers, in every process."""
        return hashed(self.units)

    def span(self, n: int) -> int:
        """How many units n words are."""
        return round(n * CHARACTERS_PER_WORD) if self.unspaced else n


def hashed(units: list[str]) -> np.ndarray:
    """A number for each of `units`, uint64 [units], the same in every process."""
    return np.fromiter(map(zlib.crc32, map(str.encode, units)), np.uint64, len(units))


def ngrams(hashes_U: np.ndarray, n: int) -> np.ndarray:
    """A number for each n units in a row, uint64 [units - n + 1]; equal n-grams have equal numbers."""
    count = len(hashes_U) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    out = hashes_U[:count].copy()
    for i in range(1, n):
        out = out * _MULTIPLIER + hashes_U[i : i + count]
    # Sums of products keep their low bits low: mixed, all bits say something of all units.
    out ^= out >> np.uint64(31)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    return out ^ (out >> np.uint64(29))
