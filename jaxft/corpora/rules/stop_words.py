"""Whether there are sentences: they have words that mean little (Rae et al. 2021, section A.1.1)."""

import re
from collections.abc import Sequence

from jaxft.corpora.document import Document, Removed

_WORD = re.compile(r"\w+")


def stop_words(document: Document, *, language: str, words: Sequence[str], least: int) -> Document | Removed:
    """words: of them at least `least` different ones must be there, whatever their case.

    language: of the list; documents that the rule `language` found to be in another one pass.
    """
    if document.language not in ("", language):
        return document
    found = len(set(words) & {word.casefold() for word in _WORD.findall(document.text)})
    return document if found >= least else Removed("too few stop words", f"{found}")
