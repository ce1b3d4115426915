"""Marks of text that nobody wrote to be read (Rae et al. 2021, "Gopher", section A.1.1: quality filtering)."""

import re

from jaxft.corpora.document import Document, Removed

_LETTER = re.compile(r"[^\W\d_]")
# A dash or an asterisk may begin a word, too.
_BULLET = re.compile("[\u2022\u2023\u25e6\u2043\u2219\u25aa\u25cf\u25cb\u25a0\u25a1]|[\u2013*-]\\s")
_ELLIPSES = ("...", "…")


def quality(
    document: Document,
    *,
    min_words: int,
    max_words: int,
    min_word_length: float,
    max_word_length: float,
    symbols: float,
    bullets: float,
    ellipses: float,
    letters: float,
) -> Document | Removed:
    """Limits of: words; characters of a word on average; hash signs, or ellipses, a word; shares of lines that begin
    with a bullet or end with an ellipsis; share of words with at least one letter, at least.

    In scripts without spaces a word counts as 1.5 characters, and the length of words says nothing.
    """
    units, lines = document.units, document.lines
    if not units:
        return Removed("too few words", "0 words")
    if not min_words <= document.words <= max_words:
        few = document.words < min_words
        return Removed("too few words" if few else "too many words", f"{document.words:,.0f} words")
    if not document.unspaced:
        mean = sum(map(len, units)) / len(units)
        if not min_word_length <= mean <= max_word_length:
            return Removed("words too short" if mean < min_word_length else "words too long", f"{mean:.1f} characters")
    for name, count in (
        ("hash signs", document.text.count("#")),
        ("ellipses", sum(map(document.text.count, _ELLIPSES))),
    ):
        if count > symbols * document.words:
            return Removed(f"too many {name}", f"{count:,} in {document.words:,.0f} words")
    share = sum(_BULLET.match(line) is not None for line in lines) / len(lines)
    if share > bullets:
        return Removed("lines with bullets", f"{share:.2f}")
    share = sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
    if share > ellipses:
        return Removed("lines that break off", f"{share:.2f}")
    share = sum(unit.isalpha() or _LETTER.search(unit) is not None for unit in units) / len(units)
    if share < letters:
        return Removed("words without letters", f"{1 - share:.2f}")
    return document
