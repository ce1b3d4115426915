"""White space that says nothing."""

import re

from jaxft.corpora.document import Document, Removed

_ENDS = re.compile(r"[^\S\n]+$", re.MULTILINE)
_RUNS = re.compile(r"[^\S\n]{2,}|\t")
_EMPTY = re.compile(r"\n{3,}")


def whitespace(document: Document, *, runs: bool) -> Document | Removed:
    """Takes it from the ends of lines and of the text, and leaves one empty line of several.

    runs: also makes one space of several within a line; the columns of tables and the indents of code are lost.
    """
    text = _EMPTY.sub("\n\n", _ENDS.sub("", document.text)).strip("\n")
    if runs:
        text = _RUNS.sub(" ", text)
    text = text.strip()
    return document.changed(text) if text else Removed("empty")
