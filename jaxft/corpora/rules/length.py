"""How long a document may be."""

from jaxft.corpora.document import Document, Removed


def length(document: Document, *, min_characters: int, max_characters: int) -> Document | Removed:
    """Both limits belong to what is kept."""
    size = len(document.text)
    if size < min_characters:
        return Removed("too short", f"{size:,} characters")
    if size > max_characters:
        return Removed("too long", f"{size:,} characters")
    return document
