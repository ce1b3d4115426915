"""Sentences of tagged words, as CoNLL files have them: a word a line, a blank line behind each sentence."""

import re
from collections.abc import Iterator
from typing import Any

from jaxft.data.text_formats import Buffer, Txt, lines
from jaxft.registry import BadRow

DOCUMENT = b"-DOCSTART-"  # the line that begins a document in the files of CoNLL 2003
CONLLU = ("id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
SHOWN = ("tokens", "lemma", "upos", "xpos", "deprel")  # the columns that say one thing of a word


class Conll(Txt):
    """{"tokens": words, "tags": the last column}, of more columns also "column2", "column3", ... in between.

    Columns are parted by tabs, or in a line without any by spaces. A file of one column has words alone. A line that
    begins with # and has another number of columns than the file's first word is a comment.
    """

    def __init__(self, name: str, buffer: Buffer):
        super().__init__(name, buffer)
        self.columns = 0  # of the first word; 0: not known yet
        for start, end, _ in self._sentences():
            last = split_lines(buffer[start:end].decode("utf-8", "replace"))[-1]
            if not last.startswith("# "):  # behind its comments a sentence has words
                self.columns = len(fields(last))
                break

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, line number) of every sentence."""
        for start, end, number in self._sentences():
            if self.buffer[start : start + 1] != b"#" or self._has_words(start, end):
                yield start, end, number

    def _sentences(self) -> Iterator[tuple[int, int, int]]:
        """Runs of lines without a blank one; one that begins a document counts as blank."""
        first, past, number = -1, -1, 0
        for start, end, line in lines(self.buffer, *self.body):
            if self.blank(start, end) or self.buffer[start : start + len(DOCUMENT)] == DOCUMENT:
                if first >= 0:
                    yield first, past, number
                first = -1
                continue
            if first < 0:
                first, number = start, line
            past = end
        if first >= 0:
            yield first, past, number

    def blank(self, start: int, end: int) -> bool:
        return end - start <= 1024 and not self.buffer[start:end].strip(b" \t\r\n")

    def _has_words(self, start: int, end: int) -> bool:
        text = self.buffer[start:end].decode("utf-8", "replace")
        return not all(self.is_comment(line) for line in split_lines(text))

    def is_comment(self, line: str) -> bool:
        return line.startswith("#") and len(fields(line)) != self.columns

    def parse(self, text: str) -> dict[str, Any]:
        rows = [(n, fields(line)) for n, line in enumerate(split_lines(text), 1) if not self.is_comment(line)]
        for number, row in rows:
            if len(row) != self.columns:
                raise BadRow(
                    f"line {number} of the sentence has {len(row)} columns; the file's first has {self.columns}"
                )
            if not row[0].strip(" "):
                raise BadRow(f"line {number} of the sentence has no word")
        columns = [list(column) for column in zip(*(row for _, row in rows), strict=True)]
        names = ["tokens", *(f"column{i}" for i in range(2, self.columns)), "tags"][: self.columns]
        return dict(zip(names, columns, strict=True))


class Conllu(Conll):
    """Universal Dependencies: {"tokens", "lemma", "upos", "xpos", "deprel"}; None where a file says "_" of a word.

    The parts of a word are read and not the whole ("1-2"); nodes that stand for no word ("1.1") are not.
    """

    def is_comment(self, line: str) -> bool:
        return line.startswith("#")

    def parse(self, text: str) -> dict[str, Any]:
        words = []
        for number, line in enumerate(split_lines(text), 1):
            if self.is_comment(line):
                continue
            row = line.split("\t")
            if len(row) != len(CONLLU):
                raise BadRow(f"line {number} of the sentence has {len(row)} columns; CoNLL-U has {len(CONLLU)}")
            if row[0].isdecimal():
                words.append(dict(zip(CONLLU, row, strict=True)))
            elif not re.fullmatch(r"\d+[-.]\d+", row[0]):
                raise BadRow(f"line {number} of the sentence has the id {row[0]!r}, which is no number")
        if not words:
            raise BadRow("the sentence has no words")
        columns = {name: [word[name] for word in words] for name in SHOWN}
        unsaid = {name: [None if value == "_" else value for value in column] for name, column in columns.items()}
        return unsaid | {"tokens": columns["tokens"]}


def split_lines(text: str) -> list[str]:
    """At line ends alone: other characters that `splitlines` knows may be words."""
    return [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]


def fields(line: str) -> list[str]:
    """At tabs, or at spaces where there are none; a no-break space may be a word."""
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


FORMATS: dict[str, type[Txt]] = {"conll": Conll, "bio": Conll, "iob": Conll, "iob2": Conll, "conllu": Conllu}
