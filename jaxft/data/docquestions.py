"""The embedded data set of questions: what docstrings say of what they document.

Every docstring with a section of parameters, results or exceptions is asked for what stands there: "what does it
return?" is answered by the first sentence under Returns, "what is its first parameter?" by a name. All answers are
pieces of the docstring. Texts and splits are those of the docstrings (docstrings.py).
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.docstrings import docstrings
from jaxft.data.source import Dataset, Split, fingerprint

LENGTHS = range(120, 801)  # characters of a docstring
ASKED = 2  # questions about each, of those that it answers
WORDS = range(2, 21)  # of an answer that is a sentence
HEADS = {
    **dict.fromkeys(("Args", "Arguments", "Parameters"), "parameters"),
    **dict.fromkeys(("Return", "Returns"), "returns"),
    "Raises": "raises",
}
# A head and what belongs to it: indented below it, as Google has it, or behind a line of dashes, as NumPy does.
SECTION = re.compile(
    rf"^(?P<head>{'|'.join(HEADS)})(?::[ ]*\n(?P<google>(?:[ ]+.*\n|\n)+)|\n-{{3,}}\n(?P<numpy>(?:.*\n)*?)"
    r"(?=^\S.*\n-{3,}|\Z))",
    re.M,
)
# name (type): description; name : type, and the description in the next line; the type alone, of what is returned.
ENTRY = {
    "google": re.compile(
        r"^(?P<indent>[ ]+)(?P<name>[*`\[]*[\w.\[\], ]+?[`\]]*)(?:[ ]*\((?P<type>[^\n]{1,60}?)\))?:\s+(?P<said>\S)",
        re.M,
    ),
    "numpy": re.compile(
        r"^(?P<indent>)(?P<name>[*`]*[\w., ]+?`?)(?:[ ]*:[ ]*(?P<type>[^\n]{1,60}?))?[ ]*\n[ ]+(?P<said>\S)", re.M
    ),
}
SENTENCE = re.compile(r".+?(?=\.(?:\s+[A-Z`*\"'\[]|\s*\Z)|\n[ ]*\n|\Z)", re.S)  # "e.g. this" goes on
Span = tuple[int, int]  # first character, past the last


def docquestions(*, data_dir: str) -> Dataset:
    """Rows {"id", "question", "context", "answers": {"text": [one], "answer_start": [one]}}.

    data_dir: that of docstrings, which these are made of.
    """
    source = docstrings(data_dir=data_dir)
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return Dataset("docquestions", {name: _split(name, split, code) for name, split in source.splits.items()}, {})


def _split(name: str, source: Split, code: str) -> Split:
    rows = [row for given in source.rows for row in questions(given["name"], given["text"])]
    return Split(rows, fingerprint(source=source.fingerprint, code=code), lambda i: f"docquestions {name}:{i}")


def questions(name: str, text: str) -> Iterator[dict[str, Any]]:
    """The questions about a docstring that has sections."""
    if len(text) not in LENGTHS:
        return
    asked = spans(text)
    if len(asked) < 2:
        return
    # Those of the smallest hashes: any, but the same ones for everybody.
    chosen = sorted(asked, key=lambda question: hashlib.sha256(f"{question} {text}".encode()).digest())[:ASKED]
    for question, (start, end) in ((question, asked[question]) for question in chosen):
        answers = {"text": [text[start:end]], "answer_start": [start]}
        yield {"id": f"{name} {question}", "question": question, "context": text, "answers": answers}


def spans(text: str) -> Mapping[str, Span]:
    """Question -> where its answer stands."""
    text += "\n"
    asked: dict[str, Span | None] = {"what does it do?": _sentence(text, 0, len(text))}
    for section in SECTION.finditer(text):
        style = "google" if section["google"] is not None else "numpy"
        begin, end = section.span(style)
        found = list(ENTRY[style].finditer(text, begin, end))
        entries = [one for one in found if one["indent"] == found[0]["indent"]]
        kind = HEADS[section["head"]]
        if kind == "parameters" and entries:
            asked["what is its first parameter?"] = entries[0].span("name")
            asked["what is its last parameter?"] = entries[-1].span("name") if len(entries) > 1 else None
        if kind == "returns":
            said = entries[0].start("said") if entries else len(text) - len(text[begin:].lstrip())
            asked["what does it return?"] = _sentence(text, said, end)
            if entries:
                asked["which type does it return?"] = entries[0].span("type" if entries[0]["type"] else "name")
        if kind == "raises" and entries:
            asked["what does it raise?"] = entries[0].span("name")
            stops = entries[1].start() if len(entries) > 1 else end
            asked["when does it raise this?"] = _sentence(text, entries[0].start("said"), stops)
    return {question: span for question, span in asked.items() if span}


def _sentence(text: str, start: int, end: int) -> Span | None:
    """The first sentence from there on, unless it is short or long."""
    found = SENTENCE.match(text, start, end)
    if not found or len(found[0].split()) not in WORDS:
        return None
    return start, start + len(found[0].rstrip())
