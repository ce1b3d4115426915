"""A conversation -> the text that a chat model reads, by the template that came with its tokenizer.

Templates are Jinja2 programs that somebody else wrote. They run as transformers runs them: in a sandbox, in which they
can read what they are given and change nothing.
"""

import datetime
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.hf import files, tokenizer
from jaxft.registry import BadRow, UserError

FILE = "chat_template.jinja"
ASSISTANT = "assistant"
# Around what a template marks as the assistant's: characters that no text may hold (Unicode 23.7).
BEGIN, END = "\ufdd0", "\ufdd1"
MARKED = "_jaxft_marked"  # a template is told by it whether to write these

Message = Mapping[str, Any]  # role, content, and whatever else the template knows


class Template:
    """The template of a hub folder, or of the file `other`, compiled.

    `now` is the time that a template is told which asks for it. Raises UserError where there is no template, or none
    that can be read.
    """

    def __init__(
        self, folder: Path, other: str = "", now: Callable[[], datetime.datetime] = datetime.datetime.now
    ) -> None:
        from jinja2 import TemplateError

        self.name, self.source = _source(folder, other)
        environment = _environment()
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: now().strftime(form)}
        try:
            self._template = environment.from_string(self.source)
            self._marks = any(tag == "generation" for _, kind, tag in environment.lex(self.source) if kind == "name")
        except TemplateError as error:
            raise UserError(f"{self.name}: the chat template cannot be read: {error}") from None
        special = {name: tokenizer.special_token(folder, name) for name in tokenizer.SPECIAL}
        self._special = {name: text for name, text in special.items() if text is not None}

    @property
    def identity(self) -> str:
        """What its texts depend on, beside the conversation and the time."""
        return repr((self.source, sorted(self._special.items())))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """What the model reads, up to where its answer begins. Raises UserError where the template refuses."""
        try:
            return self._render(messages, tools, prompt=True)
        except BadRow as error:
            raise UserError(f"{self.name}: {error}") from None

    def pieces(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, *, last: bool, ends: Sequence[str]
    ) -> list[str]:
        """The text of a conversation, cut so that the assistant says every second piece: the 2nd, the 4th, ...

        With what ends its turn; of its turns all, or the `last` one alone. The template's {% generation %} blocks tell
        what it says. Where it has none, a turn begins where the prompt before it ends, and ends where the conversation
        up to it does; but not with white space behind one of `ends`, the tokens that end turns. Raises BadRow where
        this cannot be told for sure, and where the template refuses the conversation.
        """
        whole = self._render(messages, tools)
        turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        spans = self._marked(messages, tools, whole) if self._marks else None
        if spans is None:
            chosen = turns[-1:] if last else turns
            spans = [self._turn(messages[: i + 1], tools, whole, ends, i + 1 == len(messages)) for i in chosen]
        elif last:
            begin = self._before(messages[: turns[-1]], tools, whole, prompt=False)
            spans = [span for span in spans if span[0] >= begin]
        if not spans:
            raise BadRow("the chat template writes nothing that the assistant says")
        cuts = [0, *itertools.chain.from_iterable(spans), len(whole)]
        return [whole[start:end] for start, end in itertools.pairwise(cuts)]

    def _marked(self, messages: Sequence[Message], tools: Any, whole: str) -> list[tuple[int, int]]:
        """(begin, end) of what stands in {% generation %} blocks, in `whole`."""
        marked = self._render(messages, tools, marked=True)
        parts = marked.replace(END, BEGIN).split(BEGIN)
        if "".join(parts) != whole or len(parts) != 1 + 2 * marked.count(BEGIN):
            raise BadRow("the chat template changes what stands in its {% generation %} blocks after them")
        edges = list(itertools.accumulate(map(len, parts)))
        return [(edges[i], edges[i + 1]) for i in range(0, len(edges) - 1, 2) if edges[i] < edges[i + 1]]

    def _turn(
        self, messages: Sequence[Message], tools: Any, whole: str, ends: Sequence[str], is_last: bool
    ) -> tuple[int, int]:
        """(begin, end) of the last of `messages` in `whole`, the text of these and all that follow."""
        begin = self._before(messages[:-1], tools, whole, prompt=True)
        end = len(whole) if is_last else self._before(messages, tools, whole, prompt=False)
        said = whole[begin:end]
        if said.rstrip().endswith(tuple(ends)):
            said = said.rstrip()
        if not said:
            raise BadRow(f"the chat template writes nothing for turn {len(messages)} of the conversation")
        return begin, begin + len(said)

    def _before(self, messages: Sequence[Message], tools: Any, whole: str, *, prompt: bool) -> int:
        """How much of `whole` these messages are, which come first in it."""
        text = self._render(messages, tools, prompt=prompt)
        if not whole.startswith(text):
            raise BadRow(
                f"the chat template writes the first {len(messages)} turns otherwise when more follow, and has no "
                "{% generation %} blocks, so what the assistant says cannot be told from the rest; set "
                "task.turns='last', or task.template to a template that has them"
            )
        return len(text)

    def _render(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False, marked: bool = False) -> str:
        from jinja2 import TemplateError

        told = {"messages": list(messages), "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            return self._template.render(**told, **self._special, **{MARKED: marked})
        # A template is somebody's program: it may divide by 0, or call itself without end.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            roles = ", ".join(message["role"] for message in messages) or "nobody"
            raise BadRow(f"the chat template refuses a conversation of {roles}: {error}") from None


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            told = nodes.Name(MARKED, "load")
            return nodes.CallBlock(self.call_method("_wrapped", [told]), [], [], body).set_lineno(line)

        @staticmethod
        def _wrapped(marked: Any, caller: Callable[[], str]) -> str:
            return f"{BEGIN}{caller()}{END}" if marked is True else caller()

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


def _source(folder: Path, other: str) -> tuple[str, str]:
    """(where, the text) of the template of `folder`, or of the file `other`."""
    if other:
        path = Path(other).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"task.template={other!r}: no such file")
        return str(path), files.inside(path.parent, path.name).read_text(encoding="utf-8")
    if (folder / FILE).exists():
        return str(folder), files.inside(folder, FILE).read_text(encoding="utf-8")
    told = files.read_json(folder, tokenizer.CONFIG) if (folder / tokenizer.CONFIG).exists() else {}
    source = told.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {one["name"]: one["template"] for one in source}.get("default")
    if not isinstance(source, str):
        raise UserError(
            f"{folder} has no chat template: neither {FILE} nor chat_template in {tokenizer.CONFIG}, so the model was "
            "not made for conversations: use --prompt, or a model that was; to train one, name a template in "
            "task.template, or for random weights set tokenizer.name='chat'"
        )
    return str(folder), source


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own would write HTML's escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
