"""Characters that no reader sees."""

import re

from jaxft.corpora.document import Document, Removed

# Controls but tab and line feed; zero-width space, word joiner and byte order mark; marks of direction; soft hyphens;
# what is no character at all. Joiners (200C, 200D) stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufdd0-\ufdef\ufffe\uffff]"
)
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# What decoders leave of bytes that were no text, and controls that no text has.
_JUNK = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")


def control(document: Document, *, most: float) -> Document | Removed:
    """Takes invisible characters out, and writes every line end as one line feed.

    most: share of characters that are controls or replacement characters (U+FFFD) from which on a document is junk.
    """
    text = document.text
    junk = len(_JUNK.findall(text))
    if junk > most * len(text):
        return Removed("control characters", f"{junk:,} of {len(text):,} characters")
    text = _BREAKS.sub("\n", text)
    text, taken = _INVISIBLE.subn("", text)
    return document.changed(text, characters=taken)
