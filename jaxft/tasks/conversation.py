"""Conversations, from whichever of the usual forms a row has them in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxft.registry import BadRow, UserError, nearest
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, Splits, cell, require_columns

USER, ASSISTANT = "user", "assistant"
ROLES = ("system", "developer", USER, ASSISTANT, "tool")
# Who speaks in rows of {"from": ..., "value": ...}.
SPEAKERS = {role: role for role in ROLES} | {"human": USER, "gpt": ASSISTANT, "observation": "tool"}
CALL = "function_call"  # says the name and the arguments of a tool, as JSON
ROLES_OF = {"messages": ROLES, "sharegpt": (*SPEAKERS, CALL)}
# Columns of a dialect: how many there are, and what they hold.
DIALECTS = {
    "messages": (1, "a list of {role, content}"),
    "sharegpt": (1, "a list of {from, value}"),
    "prompt": (2, "what the user says, and the answer"),
    "alpaca": (3, "an instruction, its input (may be empty), and the answer"),
}

Messages = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Conversations(Classless):
    """How rows hold conversations.

    dialect: a key of DIALECTS; text: its columns. system: a column with what the system says first; tools: one with a
    list of the tools that may be called, as JSON schemas; "": no such column.
    template: a file with a chat template instead of the tokenizer's own, of which the run keeps a copy; "": that one.
    date: year-month-day, what a template is told that asks for the day.
    too_long: what becomes of a conversation of more than input.length tokens: "cut" at its end, "drop" (left out,
    counted and listed), or "stop": it is a bad row, of which input.on_bad says what happens.
    """

    dialect: str
    text: tuple
    system: str
    tools: str
    template: str
    date: str
    too_long: str

    reads: ClassVar[str] = "chat"
    head: ClassVar[str] = "causal_lm"
    outputs: ClassVar[int] = 0  # logits are over the vocabulary
    generates: ClassVar[bool] = False
    flags: ClassVar[dict[str, str]] = {"text": "text"}
    dialects: ClassVar[tuple[str, ...]] = tuple(DIALECTS)
    read: ClassVar[float] = 1.0  # share of a row's tokens whose vectors the head is given

    def check_options(self) -> None:
        for option, known in (("dialect", self.dialects), ("too_long", ("cut", "drop", "stop"))):
            one_of(f"task.{option}", getattr(self, option), known)
        object.__setattr__(self, "text", tuple(self.text))
        self.check_dialect()

    def check_dialect(self) -> None:
        """Raises UserError where the columns are not those of the dialect."""
        columns, what = DIALECTS[self.dialect]
        if len(self.text) != columns:
            raise UserError(f"task.text={self.text!r}: dialect {self.dialect!r} has {columns} columns: {what}")

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns."""
        given = [("text", column) for column in self.text]
        given += [(name, column) for name in ("system", "tools") if (column := getattr(self, name))]
        require_columns(splits, given, option)

    def messages(self, row: Row) -> Messages:
        """Who says what, in the order of the row. Raises BadRow."""
        first = self.text[0]
        if self.dialect == "prompt":
            said = [(USER, words(row, first)), (ASSISTANT, words(row, self.text[1]))]
        elif self.dialect == "alpaca":
            more = cell(row, self.text[1])
            asked = f"{words(row, first)}\n{words(row, self.text[1])}" if more else words(row, first)
            said = [(USER, asked), (ASSISTANT, words(row, self.text[2]))]
        else:
            return self._system(row) + self.listed(cell(row, first), first)
        return self._system(row) + [{"role": role, "content": content} for role, content in said]

    def listed(self, value: Any, column: str) -> Messages:
        """The messages of a list of them. Raises BadRow."""
        if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
            if len({len(each) for each in value.values()}) > 1:
                raise BadRow(f"{column!r} has lists of several lengths")
            value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]  # of TFDS
        if not isinstance(value, list) or not value:
            kind = "{from, value}" if self.dialect == "sharegpt" else "{role, content}"
            raise BadRow(f"{column!r} must be a list of {kind}, with one at least")
        read = _shared if self.dialect == "sharegpt" else _message
        return [read(one, f"{column!r}: turn {number}") for number, one in enumerate(value, 1)]

    def _system(self, row: Row) -> Messages:
        said = cell(row, self.system) if self.system else ""
        return [{"role": "system", "content": words(row, self.system)}] if said else []

    def tools_of(self, row: Row) -> list[Any] | None:
        """The tools of a row, None where it has none. Raises BadRow."""
        value = cell(row, self.tools) if self.tools else None
        if isinstance(value, str) and value:
            value = _json(value, repr(self.tools))
        if not value:
            return None
        if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
            raise BadRow(f"{self.tools!r} must be a list of JSON schemas of tools, or one written as JSON")
        return [_without_none(tool) for tool in value]


def words(row: Row, column: str) -> str:
    """A text that is not empty. Raises BadRow."""
    value = cell(row, column)
    if isinstance(value, str) and value.strip():
        return value
    raise BadRow(f"{column!r} is {'empty' if not value or isinstance(value, str) else f'a {type(value).__name__}'}")


def one_of(field: str, value: str, known: Sequence[str]) -> None:
    """Raises UserError unless `value` is known."""
    if value not in known:
        raise UserError(f"{field}={value!r} must be one of: {', '.join(known)}{nearest(value, known)}")


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or "role" not in value:
        raise BadRow(f"{where} is no {{role, content}}: {str(value)[:60]!r}")
    message = _without_none(value)
    role, content = message["role"], message.get("content")  # a call of tools may have none
    if role not in ROLES:
        raise BadRow(f"{where} has the role {role!r}; known: {', '.join(ROLES)}{nearest(str(role), ROLES)}")
    if content is not None and not isinstance(content, str):
        raise BadRow(f"{where} ({role}) has a content that is a {type(content).__name__}, not text")
    speaks = bool(content and content.strip()) or (role == ASSISTANT and bool(message.get("tool_calls")))
    if role in (USER, ASSISTANT) and not speaks:
        raise BadRow(f"{where} ({role}) is empty")
    return message


def _shared(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or "from" not in value:
        raise BadRow(f"{where} is no {{from, value}}: {str(value)[:60]!r}")
    speaker, said = value["from"], value.get("value")
    if speaker == CALL and isinstance(said, str):
        calls = _json(said, where)
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, Mapping) and {"name", "arguments"} <= call.keys() for call in calls):
            raise BadRow(f"{where} ({CALL}) must say {{name, arguments}}")
        made = [{"type": "function", "function": {key: call[key] for key in ("name", "arguments")}} for call in calls]
        return {"role": ASSISTANT, "content": "", "tool_calls": made}
    if speaker not in SPEAKERS:
        known = ROLES_OF["sharegpt"]
        raise BadRow(f"{where} is from {speaker!r}; known: {', '.join(known)}{nearest(str(speaker), known)}")
    return _message({"role": SPEAKERS[speaker], "content": said}, where)


def _without_none(value: Any) -> Any:
    """Keys that say nothing stay away, as in transformers: a table of rows gives every key to each of them."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{where} is not JSON ({error})") from error
