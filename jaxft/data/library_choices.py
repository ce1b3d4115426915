"""The embedded data set of multiple choice: which of four libraries a docstring is from."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.data.docstrings import docstrings
from jaxft.data.source import Dataset, Split, fingerprint

RELEASE = 2
CHOICES = 4


def library_choices(*, data_dir: str) -> Dataset:
    """Splits of docstrings; columns text, choices (names of four libraries) and label, the number of the right one.

    The wrong ones are drawn at random, always the same. data_dir: where docstrings are kept; "" = the private per-user
    cache folder.
    """
    whole = docstrings(data_dir=data_dir)
    libraries = whole.label_names["label"]
    splits = {name: _split(name, split, libraries) for name, split in whole.splits.items()}
    return Dataset("library_choices", splits, {})


def _split(name: str, split: Split, libraries: Sequence[str]) -> Split:
    rng = random.Random(name)
    rows = [_row(split.rows[i], libraries, rng) for i in range(len(split.rows))]
    return Split(rows, fingerprint(of=split.fingerprint, release=RELEASE), lambda i: f"library_choices {name}:{i}")


def _row(row: Mapping[str, Any], libraries: Sequence[str], rng: random.Random) -> dict[str, Any]:
    right = libraries[int(row["label"])]  # docstrings number their classes
    choices = rng.sample([library for library in libraries if library != right], CHOICES - 1)
    label = rng.randrange(CHOICES)
    choices.insert(label, right)
    return {"text": row["text"], "choices": choices, "label": label}
