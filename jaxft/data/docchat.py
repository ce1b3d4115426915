"""The embedded data set of conversations: somebody asks what a function is for, then where it comes from.

Made of the docstrings that every installation has (docstrings.py): the first answer is a docstring's first sentence,
the second one the library that it is from. A model has to make up what a function that it never saw does, from its
name; what library the two speak of it can tell.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxft.data import docstrings as base
from jaxft.data.files import point
from jaxft.data.source import Dataset, Split, fingerprint

RELEASE = "1"  # raise it when the same docstrings give other conversations
LENGTHS = range(20, 161)  # characters of an answer
SENTENCE = re.compile(r"[A-Z][a-z]+ .*?[a-z)`]\.(?= |$)")
ASKED = ("What does {} do?", "What is {} for?", "Explain {}.")
WHENCE = ("Which library is it from?", "Where is it from?", "What is it part of?")


def docchat(*, data_dir: str) -> Dataset:
    """Splits train, validation and test of rows {"messages": [{"role", "content"}, ...]}; each first answer once.

    data_dir: as that of docstrings.
    """
    known = base.docstrings(data_dir=data_dir)
    labels, seen = known.label_names["label"], set()
    splits = {}
    for name, split in known.splits.items():
        found = list(_conversations(split, labels, seen))
        rows = [{"messages": messages} for _, messages in found]
        splits[name] = _split(split, rows, [i for i, _ in found])
    return Dataset("docchat", splits, {})


def docpairs(*, data_dir: str) -> Dataset:
    """The first question of each of these conversations with its answer, and the answer to another one.

    Rows {"prompt", "chosen", "rejected"}, all texts.
    """
    known = docchat(data_dir=data_dir)
    return Dataset("docpairs", {name: _paired(split) for name, split in known.splits.items()}, {})


def _paired(split: Split) -> Split:
    said = [[message["content"] for message in row["messages"]] for row in split.rows]
    # Docstrings of one library stand together; half way through the split there is another one.
    others = [said[(i + len(said) // 2) % len(said)][1] for i in range(len(said))]
    rows = [
        {"prompt": asked, "chosen": answer, "rejected": other}
        for (asked, answer, *_), other in zip(said, others, strict=True)
    ]
    return dataclasses.replace(split, rows=rows, fingerprint=fingerprint(docchat=split.fingerprint, pairs=True))


def _split(split: Split, rows: list[dict[str, Any]], at: list[int]) -> Split:
    return Split(rows, fingerprint(docstrings=split.fingerprint, release=RELEASE), lambda i: split.where(at[i]))


def _conversations(split: Split, labels: tuple[str, ...], seen: set[str]) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """(row of the split, messages) of each docstring that begins with a sentence which is not yet `seen`."""
    for i in range(len(split.rows)):
        row = split.rows[i]
        answer = first_sentence(row["text"])
        if answer and answer not in seen:
            seen.add(answer)
            yield i, conversation(row, labels[row["label"]], answer)


def first_sentence(text: str) -> str:
    """The sentence that a docstring begins with; "" where it begins otherwise, or with a short or a long one."""
    found = SENTENCE.match(" ".join(text.partition("\n\n")[0].split()))
    return found[0] if found and len(found[0]) in LENGTHS else ""


def conversation(row: Mapping[str, Any], library: str, answer: str) -> list[dict[str, str]]:
    """Two questions about what `row` documents and their answers, worded by a hash of its name."""
    called = ".".join(row["name"].split(".")[-2:])
    choice = int(point(row["name"].encode()) * len(ASKED) * len(WHENCE))
    whence = "the standard library" if library == base.PYTHON else library
    said = (
        ASKED[choice // len(WHENCE)].format(called),
        answer,
        WHENCE[choice % len(WHENCE)],
        f"It is from {whence}.",
    )
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
