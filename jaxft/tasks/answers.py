"""Answers of a row, from whichever of the usual forms the row has them in, and where in the context they stand."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft.registry import BadRow
from jaxft.tasks.text import Row, cell


class Answer(NamedTuple):
    text: str
    start: int | None  # its first character; None where the row does not say


def answers_of(row: Row, column: str) -> list[Answer]:
    """Those that say something, of {"text": [...], "answer_start": [...]} or [{"text", "answer_start"}, ...].

    Also of a text or a list of texts, without places. Raises BadRow for anything else.
    """
    value = cell(row, column)
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        texts: Any = value.get("text")
        starts: Any = value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise BadRow(f"{column!r} must have lists of equal length called text and answer_start")
    elif isinstance(value, list):
        known = [one if isinstance(one, Mapping) else {"text": one} for one in value]
        texts, starts = ([one.get(name) for one in known] for name in ("text", "answer_start"))
    else:
        raise BadRow(f"{column!r} is {'empty' if value is None else f'a {type(value).__name__}'}; it must be answers")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str):
            raise BadRow(f"{column!r}: an answer is {text!r:.40}, not a text")
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise BadRow(f"{column!r}: answer_start is {start!r:.40}, not a whole number")
    return [Answer(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]


def placed(context: str, answers: list[Answer]) -> list[int]:
    """[first character, past the last, whether it is not where the row says] of the first answer in the context.

    Such a one is where its text stands nearest to the place that the row gives, or first where it gives none. White
    space around an answer is no part of it. Raises BadRow where no answer is in the context.
    """
    for text, start in answers:
        if start is not None and start >= 0 and context.startswith(text, start):
            begin = start + len(text) - len(text.lstrip())
            return [begin, begin + len(text.strip()), 0]
        if (begin := _nearest(context, text.strip(), start or 0)) >= 0:
            return [begin, begin + len(text.strip()), int(start is not None)]
    shown = answers[0].text if len(answers[0].text) <= 60 else answers[0].text[:60] + "..."
    raise BadRow(f"the answer {shown!r} is not in its context" + (", nor is another" if len(answers) > 1 else ""))


def _nearest(context: str, text: str, start: int) -> int:
    start = min(max(start, 0), len(context))
    behind, before = context.find(text, start), context.rfind(text, 0, start + len(text))
    found = [place for place in (before, behind) if place >= 0]
    return min(found, key=lambda place: abs(place - start), default=-1)
