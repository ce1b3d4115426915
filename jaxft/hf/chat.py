"""A conversation -> the prompt of a chat model, by the template that came with its tokenizer.

Templates are Jinja2 programs that somebody else wrote. They run as transformers runs them: in a sandbox, in which they
can read what they are given and change nothing.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.hf import files, tokenizer
from jaxft.registry import UserError

FILE = "chat_template.jinja"

Message = dict[str, str]  # role: system, user or assistant; content


class Template:
    """The template of a hub folder, compiled. Raises UserError where there is none, or none that can be read."""

    def __init__(self, folder: Path):
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._folder = folder
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(_source(folder))
        except TemplateError as error:
            raise UserError(f"{folder}: the chat template cannot be read: {error}") from None
        special = {name: tokenizer.special_token(folder, name) for name in tokenizer.SPECIAL}
        self._special = {name: text for name, text in special.items() if text is not None}

    def prompt(self, messages: Sequence[Message]) -> str:
        """What the model reads, up to where its answer begins. Raises UserError where the template refuses."""
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._special)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"{self._folder}: the chat template refuses a conversation of {roles}: {error}") from None


def _source(folder: Path) -> str:
    if (folder / FILE).exists():
        return files.inside(folder, FILE).read_text(encoding="utf-8")
    told = files.read_json(folder, tokenizer.CONFIG) if (folder / tokenizer.CONFIG).exists() else {}
    source = told.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {one["name"]: one["template"] for one in source}.get("default")
    if not isinstance(source, str):
        raise UserError(
            f"{folder} has no chat template: neither {FILE} nor chat_template in {tokenizer.CONFIG}, so the model was "
            "not made for conversations; use --prompt, or a model that was"
        )
    return source


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own would write HTML's escapes


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
