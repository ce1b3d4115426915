"""Questions in the .json format of SQuAD: articles of paragraphs, each a context with its questions.

{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}

A row is a question, in the form that flat files and TFDS have it: {"id", "title", "context", "question", "answers":
{"text": [...], "answer_start": [...]}}. Questions of the second version have "is_impossible", too.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxft.data.text_formats import Buffer
from jaxft.registry import BadRow, UserError

WANTED = 'SQuAD\'s {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}'


class Squad:
    """A table (opening.py) whose spans are numbers of questions; a message counts questions from 1."""

    unit = "question"

    def __init__(self, name: str, buffer: Buffer):
        try:
            content = json.loads(buffer[:].decode("utf-8-sig"))
            articles = content["data"]
            self._found = [
                (article, paragraph, question)
                for article in articles
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8 (byte {error.start + 1}: {error.reason})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is not JSON ({error}); a file of one object a line ends in .jsonl") from error
        except (TypeError, KeyError) as error:
            raise UserError(
                f"{name} has not the form {WANTED}; write another file as .jsonl, one object a line"
            ) from error

    def spans(self) -> Iterator[tuple[int, int, int]]:
        return ((number, number + 1, number + 1) for number in range(len(self._found)))

    def record(self, start: int, end: int) -> bytes:
        """The context: questions about one stay together where a share of the file is held out."""
        return str(self._found[start][1].get("context")).encode("utf-8", "surrogatepass")

    def read(self, start: int, end: int) -> dict[str, Any]:
        """Raises BadRow for answers of another form, and for text that no UTF-8 file can hold."""
        article, paragraph, question = self._found[start]
        if not isinstance(question, Mapping):
            raise BadRow(f"a question is a JSON {type(question).__name__}; it must be an object")
        row = {"id": question.get("id"), "title": article.get("title"), "context": paragraph.get("context")}
        row |= {name: question[name] for name in ("question", "is_impossible") if name in question}
        if "answers" in question:
            row["answers"] = _columns(question["answers"])
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRow("holds half of a surrogate pair, which is no character") from error
        return row


def _columns(answers: Any) -> dict[str, list[Any]]:
    try:
        return {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
    except (TypeError, KeyError) as error:
        raise BadRow(f"answers are {answers!r:.80}; they must be a list of {{text, answer_start}}") from error
