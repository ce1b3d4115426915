"""One way to write each character; text that was decoded wrongly, decoded again."""

import functools
import unicodedata
from typing import Any

from jaxft.corpora.document import Document, Removed
from jaxft.registry import UserError

FORMS = ("NFC", "NFKC", "")


def unicode(document: Document, *, form: str, mojibake: bool) -> Document | Removed:
    """form: NFC, NFKC (also replaces look-alikes such as full-width letters) or "" (left as it is).

    mojibake: UTF-8 that somebody read as Latin-1 ("schÃ¶n") is mended, by ftfy.
    Source: Unicode Standard Annex 15; Speer, ftfy.
    """
    if form not in FORMS:
        raise UserError(f"the form {form!r} of the rule unicode is none of {', '.join(map(repr, FORMS))}")
    text, mended = document.text, 0
    if mojibake and not text.isascii():
        # ftfy takes 0.3 s a megabyte; a line of ASCII alone cannot be wrong.
        before = text.split("\n")
        lines = [line if line.isascii() else _fix_encoding()(line) for line in before]
        mended = sum(old != new for old, new in zip(before, lines, strict=True))
        text = "\n".join(lines)
    unnormalised = 0
    if form and not unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
        text, unnormalised = unicodedata.normalize(form, text), 1  # type: ignore[arg-type]
    return document.changed(text, mended_lines=mended, normalised=unnormalised)


@functools.cache
def _fix_encoding() -> Any:
    import ftfy

    return ftfy.fix_encoding
