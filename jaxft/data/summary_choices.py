"""The embedded data set of multiple choice: which of four summaries is that of a docstring (summaries.py)."""

import random
from collections.abc import Mapping
from typing import Any

from jaxft.data.source import Dataset, Split, fingerprint
from jaxft.data.summaries import summaries

RELEASE = 1
CHOICES = 4


def summary_choices(*, data_dir: str) -> Dataset:
    """Columns text, choices (a list of four) and label, the number of the right one.

    The wrong ones are summaries of other docstrings of the split, drawn at random: so always the same.
    data_dir: where docstrings are kept; "" = the private per-user cache folder.
    """
    whole = summaries(data_dir=data_dir)
    return Dataset("summary_choices", {name: _split(name, split) for name, split in whole.splits.items()}, {})


def _split(name: str, split: Split) -> Split:
    rng = random.Random(name)
    known = sorted({row["summary"] for row in split.rows})
    rows = [_row(row, known, rng) for row in split.rows]
    return Split(rows, fingerprint(of=split.fingerprint, release=RELEASE), lambda i: f"summary_choices {name}:{i}")


def _row(row: Mapping[str, Any], known: list[str], rng: random.Random) -> dict[str, Any]:
    choices = [other for other in rng.sample(known, CHOICES) if other != row["summary"]][: CHOICES - 1]
    label = rng.randrange(CHOICES)
    choices.insert(label, row["summary"])
    return {"text": row["text"], "choices": choices, "label": label}
