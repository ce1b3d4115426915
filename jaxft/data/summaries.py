"""The embedded data set of summaries: of each docstring the first line, from all that comes after it.

By convention (PEP 257) the first line says in short what the others say at length, so every installation has thousands
of texts with a summary that somebody wrote. What is to be guessed is often not in the text: the name of the function,
which the docstring leaves out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.data.docstrings import docstrings
from jaxft.data.source import Dataset, Split, fingerprint

RELEASE = 1
WORDS = range(3, 21)  # of a summary
SHORTEST = 100  # characters of a text that is worth one


def summaries(*, data_dir: str) -> Dataset:
    """Splits train, validation and test of docstrings; columns text, summary, name.

    Each summary of validation and test is once there, and nowhere in train: what classes inherit is often the same.
    data_dir: where docstrings are kept; "" = the private per-user cache folder.
    """
    whole = docstrings(data_dir=data_dir)
    known: set[str] = set()
    splits = {}
    for name, split in whole.splits.items():
        rows = []
        for i in range(len(split.rows)):
            row = pair(split.rows[i])
            if row and (name == "train" or row["summary"] not in known):
                rows.append(row)
                known.add(row["summary"])
        splits[name] = _split(name, rows, split.fingerprint)
    return Dataset("summaries", splits, {})


def pair(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Text and summary of a docstring that has both."""
    summary, _, text = row["text"].partition("\n\n")
    text = text.strip()
    if "\n" in summary or len(summary.split()) not in WORDS or len(text) < SHORTEST:
        return None
    return {"text": text, "summary": summary, "name": row["name"]}


def _split(name: str, rows: Sequence[dict[str, str]], of: str) -> Split:
    return Split(rows, fingerprint(of=of, release=RELEASE, rows=len(rows)), lambda i: f"summaries {name}:{i}")
