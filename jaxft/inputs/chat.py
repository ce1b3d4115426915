"""Conversations: a chat template, a tokenizer, and rows packed with several conversations."""

import datetime
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft import cache, runfolder
from jaxft.config import Config
from jaxft.data import tokens
from jaxft.data.source import Split
from jaxft.data.token_writer import LeftOut
from jaxft.hf import chat, generation, tokenizer, turns
from jaxft.inputs import text
from jaxft.inputs.base import Say, read, section
from jaxft.labels import NO_LABEL
from jaxft.registry import BadRow, Dropped, UserError
from jaxft.tasks import Example

placeholders = text.placeholders
blank = functools.partial(text.blank, tags=True)


@dataclass(frozen=True)
class Format:
    """What makes tokens of conversations, of one at most `length`."""

    task: Any
    encoder: tokenizer.TextEncoder
    template: chat.Template
    length: int

    @functools.cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokens that may end a turn."""
        added = self.encoder.tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def example(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, last: bool) -> Example:
        """Raises BadRow where the template refuses it."""
        return Example(self.template.pieces(messages, tools, last=last, ends=self.ends), None, None)

    def conversation(self, row: Mapping[str, Any]) -> Example:
        """Of a row of Chat. Raises BadRow."""
        return self.example(self.task.messages(row), self.task.tools_of(row), last=self.task.turns == "last")

    def responses(self, row: Mapping[str, Any]) -> list[Example]:
        """Of a row of Preference. Raises BadRow."""
        tools = self.task.tools_of(row)
        return [self.example(messages, tools, last=True) for messages, _ in self.task.responses(row)]

    def encode(self, texts: Sequence[tuple[Any, str | None]]) -> list[turns.EncodedTurns | LeftOut]:
        """The tokens of examples, or why they are not used."""
        made = turns.encode(self.encoder, [pieces for pieces, _ in texts], self.length)
        return [_unless_left_out(one, self.length, self.task.too_long) for one in made]


def template_of(task: Any, folder: Path, other: str) -> chat.Template:
    """That of the tokenizer in `folder`, or the file `other`, on the day of the task. Raises UserError."""
    try:
        day = datetime.date.fromisoformat(task.date)
    except ValueError:
        raise UserError(f"task.date={task.date!r} must be a day as year-month-day, such as '2026-01-31'") from None
    return chat.Template(folder, other, lambda: datetime.datetime.combine(day, datetime.time()))


@dataclass(frozen=True)
class Opened:
    """The data of a run, and what makes tokens of the conversations in them."""

    dataset: Any
    format: Format

    def cache_of(self, split: Any, example: Callable[[Mapping[str, Any]], Any], encode: tokens.Encode, bad: str) -> Any:
        """The token cache of a split, from the private cache folder where it is already there; `bad`: input.on_bad."""
        made = self.format
        key = {"tokenizer": made.encoder.fingerprint, "template": made.template.identity}
        return tokens.build(
            split,
            example,
            encode,
            key=key | {"task": repr(made.task), "length": str(made.length)},
            folder=str(cache.private_dir("tokens")),
            on_bad=bad,
        )


def opened(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> Opened:
    """Reads the data, fits the task to them, trains a tokenizer where there is none. Raises UserError."""
    length = text.checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    encoder = text.encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)
    own = _own_template(task.template, folder, hf_folder, say)
    return Opened(dataset, Format(task, encoder, template_of(task, hf_folder or folder, own), length))


def _own_template(named: str, folder: Path, hf_folder: Path | None, say: Say) -> str:
    """The run's copy of the file that task.template names, "" where it names none.

    Who goes on with a run, exports or scores it reads the copy: the file may have changed, or be gone.
    """
    if not named:
        return ""
    own = folder.with_name(runfolder.TEMPLATE)
    if not own.exists():
        aside = own.with_name(f".{own.name}.{os.getpid()}.tmp")  # other processes of the run may do the same
        aside.write_text(chat.Template(hf_folder or folder, named).source, encoding="utf-8", newline="\n")
        os.replace(aside, own)
    elif Path(named).is_file() and chat.Template(hf_folder or folder, named).source != own.read_text(encoding="utf-8"):
        say(f"task.template={named!r} has changed since this run began, which reads its own copy: {own}")
    return str(own)


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> text.TextInputs:
    """As text.prepare, of conversations. Raises UserError also where there is no chat template."""
    data = opened(config, cfg, folder, hf_folder, say)
    made = data.format
    warn_of_ends(made.conversation, data.dataset.splits["train"], made, hf_folder, say)
    caches, plans = text.packed(
        config,
        data.dataset,
        lambda split: data.cache_of(split, made.conversation, made.encode, config.input.on_bad),
        say,
        "tokens of the assistant",
    )
    return text.TextInputs(made.task, hf_folder, data.dataset.splits, caches, made.encoder, made.length, plans)


class Reader(text.Reader):
    """The tokenizer and the chat template of a hub folder. `length`: the most tokens to read (0: as trained)."""

    def __init__(self, folder: Path, length: int, task: Any):
        super().__init__(folder, length, task)
        self._task, self._template = task, template_of(task, folder, "")

    def fit(self, cfg: Any) -> None:
        super().fit(cfg)
        self.format = Format(self._task, self._encoder, self._template, self._length)

    def encode(self, texts: list[tuple[Any, str | None]]) -> Sequence[Any]:
        return self.format.encode(texts)

    def split(self, split: Split) -> Split:
        """The rows that `read` takes, of those of a data set."""
        return split

    def read(self, row: Mapping[str, Any]) -> Any:
        """What `batches` takes of a row. Raises BadRow, and Dropped for a row that the task leaves out."""
        made = self.format.conversation(row)
        self.check([made])
        return made

    def check(self, examples: Sequence[Example]) -> None:
        """Raises BadRow or Dropped where the tokens of examples are not used."""
        for one in self.encode([(example.text, None) for example in examples]):
            if isinstance(one, LeftOut):
                raise (BadRow if one.bad else Dropped)(one.reason)


def _unless_left_out(one: turns.EncodedTurns, length: int, too_long: str) -> turns.EncodedTurns | LeftOut:
    learned = (one.labels != NO_LABEL).any()
    if one.truncated and too_long != "cut":
        reason = f"has {one.whole:,} tokens, more than input.length={length}"
    elif one.truncated and not learned:
        reason = f"has {one.whole:,} tokens, and the assistant says nothing in the first {length}"
    elif not learned:
        return LeftOut((), (), False, "what the assistant says has no tokens", bad=True)
    else:
        return one
    return LeftOut((), (), False, reason, bad=too_long == "stop")


def warn_of_ends(example: Callable[[Any], Example], split: Any, made: Format, hf_folder: Path | None, say: Say) -> None:
    """Says so where the first conversation has no token that ends what the assistant says, or none that ends texts."""
    for i in range(len(split.rows)):
        try:
            last = example(split.rows[i]).text[1::2][-1].rstrip()
        except BadRow:
            continue  # counted, or refused, when the token cache is built
        found = [end for end in made.ends if last.endswith(end)]
        if not found:
            say(
                f"{split.where(i)}: what the assistant says does not end with a special token ({last[-20:]!r}): "
                "the model will not learn where to stop. See task.template"
            )
        elif not {made.encoder.tokenizer.token_to_id(end) for end in found} & _stops(made.encoder, hf_folder):
            say(
                f"what the assistant says ends with {found[0]}, which is neither the tokenizer's eos_token nor in the "
                "checkpoint's generation_config.json: add it to eos_token_id in that of the export, or no text ends"
            )
        return


def _stops(encoder: tokenizer.TextEncoder, hf_folder: Path | None) -> set[int | None]:
    """The tokens at which a text that is written ends."""
    told = generation.read(hf_folder) if hf_folder else {}
    ids = told["eos_token_id"] if "eos_token_id" in told else encoder.named.get("eos_token")
    return set(ids) if isinstance(ids, list) else {ids}


def beside(config: Config, cfg: Any, folder: Path, hf_folder: Path | None) -> Callable[[Path], object]:
    """Writes tokenizer and chat template of a run into an export."""

    def write(target: Path) -> None:
        tokenizer.copy_files(hf_folder or folder, target, config.input.length)
        if section(config)["template"]:
            shutil.copyfile(folder.with_name(runfolder.TEMPLATE), target / chat.FILE)

    return write
