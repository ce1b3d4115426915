"""The list of families in the docs is the one that the program prints."""

from pathlib import Path

from jaxft.models import __main__ as listing

ROOT = Path(__file__).resolve().parents[2]


def test_the_docs_list_what_is_registered():
    """When this fails: python -m jaxft.models > docs/models.md"""
    assert (ROOT / "docs" / "models.md").read_text() == "\n".join(listing.lines()) + "\n"
