"""Names to code, loudly: an unknown name or option answers with the nearest known one.

A registry is a plain dict, `{"bert": "jaxft.models.bert", "adamw": "jaxft.optim.adamw:adamw"}`. Values are dotted
paths, so listing one entry never imports another. A config section is a call: `call(OPTIMIZERS, section)` calls the
function that `section["name"]` names with the other keys as keywords; its signature is the schema.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INNER = "inner"  # in the metadata of a dataclass's field that is no option


def inner(**default: Any) -> Any:
    """A field of a dataclass in a registry that the program fills later, and a config never."""
    return dataclasses.field(**default, metadata={INNER: True})


class UserError(Exception):
    """A mistake that the user can mend. The message names the field, the value and the fix; no traceback is shown.

    `code` is the exit status: 2 where the same command would come to it again, 1 where another try may go better, which
    launch/restart.sh makes. Of a verb that checks or plans 1 is the answer no.
    """

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [f"jaxft: {self}"]


class BadRow(Exception):
    """One row of data that cannot be used; the message is the reason. Counted, reported with file and line."""


class Dropped(BadRow):
    """A row with nothing wrong that an option of the task leaves out; counted and reported as well."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "adamw"?' for the closest known word, or '' when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def lookup(table: Mapping[str, str], name: str, field: str) -> Any:
    """Imports and returns what `name` stands for; `field` is the config key that holds the name.

    Raises UserError for an unknown name.
    """
    check_name(table, name, field)
    module_path, _, attribute = table[name].partition(":")
    module = importlib.import_module(module_path)
    return getattr(module, attribute) if attribute else module


def check_name(table: Mapping[str, str], name: str, field: str) -> None:
    """Raises UserError unless `name` is in `table`. Imports nothing."""
    if name not in table:
        raise UserError(f"{field}={name!r} is not known; known: {', '.join(sorted(table))}{nearest(str(name), table)}")


def call(table: Mapping[str, str], section: Mapping[str, Any], field: str, **given: Any) -> Any:
    """Calls the function named by `section["name"]` with the section's other keys and `given` as keywords.

    `given` holds what the program supplies (never config). Raises UserError for an unknown, a missing or a wrongly
    typed option.
    """
    return bind(table, section, field, **given)()


def bind(table: Mapping[str, str], section: Mapping[str, Any], field: str, *free: str, **given: Any) -> Any:
    """As `call`, but returns the function with its keywords bound; those in `free` are left to its caller."""
    options = {key: value for key, value in section.items() if key != "name"}
    function = lookup(table, section["name"], f"{field}.name")
    try:
        check_options(function, options, field, (*free, *given))
    except UserError as error:
        raise UserError(f"{error}{_whole(function, section, field, (*free, *given))}") from error
    return functools.partial(function, **options, **given)


def _whole(function: Any, section: Mapping[str, Any], field: str, given: Iterable[str]) -> str:
    """How to give a section that has another name's options; '' where it has those that are needed."""
    needed = [name for name in _schema(function, given) if name not in section]
    strange = [key for key in section if key != "name" and key not in _schema(function, given)]
    if not (needed and strange):
        return ""
    kinds = {name: getattr(p.annotation, "__name__", "...") for name, p in _schema(function, given).items()}
    shown = {"name": repr(section["name"])} | {
        name: repr(section[name]) if name in section else kind.upper() for name, kind in kinds.items()
    }
    text = ", ".join(f"{name!r}: {value}" for name, value in shown.items())
    return f'. Another name takes a section of its own: --config.{field}="{{{text}}}"'


def check_options(function: Any, options: Mapping[str, Any], field: str, given: Iterable[str] = ()) -> None:
    """Raises UserError unless `options` are exactly the keywords of `function` that the program does not give."""
    schema = _schema(function, given)
    for key in options:
        if key not in schema:
            allowed = ", ".join(schema) or "none"
            raise UserError(f"{field}.{key} is not an option here; options: {allowed}{nearest(key, schema)}")
    missing = [name for name, p in schema.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"{field}.{missing[0]} is missing; {field} needs: {', '.join(schema)}")
    for key, value in options.items():
        _check_type(f"{field}.{key}", value, schema[key].annotation)


def _schema(function: Any, given: Iterable[str]) -> dict[str, inspect.Parameter]:
    """The keywords of `function` that the program does not give, now or later."""
    fields = getattr(function, "__dataclass_fields__", {})
    given = {*given, *(name for name, field in fields.items() if INNER in field.metadata)}
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if name not in given and p.kind is not p.VAR_KEYWORD}


def _check_type(field: str, value: Any, annotation: Any) -> None:
    """Plain annotations only (bool, int, float, str, tuple of str): an int passes for a float, nothing else is bent."""
    if annotation in (tuple, Sequence[str]) and not (
        isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    ):
        raise UserError(f"{field}={value!r} must be a tuple of texts")
    if annotation not in (bool, int, float, str):
        return
    fits = isinstance(value, (int, float) if annotation is float else annotation)
    if not fits or (isinstance(value, bool) and annotation is not bool):
        raise UserError(f"{field}={value!r} is a {type(value).__name__}; it must be a {annotation.__name__}")
    if annotation is float and isinstance(value, (int, float)) and not math.isfinite(value):
        raise UserError(f"{field}={value!r} must be a finite number")
