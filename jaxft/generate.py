"""python -m jaxft.generate --model=FOLDER_OR_HUB_ID --prompt="..." | --input=x.jsonl --output=y.jsonl | --chat"""

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from jaxft import atomic, cli
from jaxft.registry import BadRow, UserError

MEMORY = "Set one of: --batch lower; --max_new_tokens lower; --dtype=bfloat16; --tensor higher. Nothing was written"
COLUMNS = ("prompt", "text", "messages")  # where a row's prompt is looked for
CHUNK = 16  # batches that are held at once, so that prompts of like length meet


def main() -> None:
    cli.guarded(lambda: generate(_arguments()), memory_fix=MEMORY)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxft.generate",
        description="Write texts with a language model. What no flag says is taken from its generation_config.json.",
    )
    add = parser.add_argument
    add("--model", default="", help="hub id or local Hugging Face folder")
    add("--run", default="", help="instead of --model: folder of a finished run")
    add("--prompt", default="", help="the text to go on from, or the source of an encoder-decoder")
    add("--input", default="", help="jsonl, csv, tsv, parquet or txt file of prompts or conversations")
    add("--output", default="", help="jsonl file to write; the rows of the input, each with 'generated'")
    add("--text", default="", help=f"column of the prompt, or of messages (default: {' or '.join(COLUMNS)})")
    add("--chat", action="store_true", help="a conversation in the terminal; /quit or Ctrl-D ends it")
    add("--system", default="", help="what the conversation begins with")
    add("--stream", action=argparse.BooleanOptionalAction, help="print tokens as they come (default: on a terminal)")
    add("--max_new_tokens", type=int, help="tokens to write at most")
    add("--temperature", type=float, help="above 0: draw tokens, the hotter the wilder; 0: take the likeliest")
    add("--top_k", type=int, help="draw from so many likeliest tokens (default: the model's, or 50); 0: from all")
    add("--top_p", type=float, help="draw from the likeliest tokens that together have this probability")
    add("--min_p", type=float, help="draw from tokens that have at least this share of the likeliest one's")
    add("--repetition_penalty", type=float, help="above 1: tokens that were there before are less likely")
    add("--no_repeat_ngram_size", type=int, help="no so many tokens in a row come twice")
    add("--beams", type=int, dest="num_beams", help="texts that a search carries on at once; 1: no search")
    add("--length_penalty", type=float, help="of a search: above 0 prefers longer texts, below 0 shorter ones")
    add(
        "--early_stopping",
        choices=("true", "false", "never"),
        help="of a search: how soon it ends (transformers' rules)",
    )
    add("--seed", type=int, default=0, help="of what is drawn")
    add("--batch", type=int, default=16, help="prompts to go on from at once, at most")
    add(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: float32 on a CPU, else bfloat16"
    )
    add("--tensor", type=int, default=1, help="devices that share each row; the others share out the rows")
    return parser.parse_args()


# What generation_config.json may say too.
SETTINGS = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("num_beams", "length_penalty", "early_stopping"),
)
STOPPING = {None: None, "true": True, "false": False, "never": "never"}


def generate(arguments: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, a value out of range and a row that cannot be used."""
    _check(arguments)
    if arguments.input:
        _file(arguments)
        return
    generator, folder = _generator(arguments)
    stream = sys.stdout.isatty() if arguments.stream is None else arguments.stream
    if arguments.chat:
        _chat(generator, folder, arguments.system, stream=arguments.stream is not False)
    else:
        prefix, _ = _as_trained(arguments)
        (ids,) = generator.ids([prefix + arguments.prompt], ["--prompt"])
        _print(generator.stream(ids) if stream else generator.write([ids]))


def _check(arguments: argparse.Namespace) -> None:
    ways = {"--prompt": arguments.prompt, "--input": arguments.input, "--chat": arguments.chat}
    if sum(bool(value) for value in ways.values()) != 1:
        raise UserError("name one of --prompt=TEXT, --input=FILE with --output=FILE, and --chat")
    if bool(arguments.input) != bool(arguments.output):
        raise UserError("--input and --output go together; name both")
    if arguments.system and not arguments.chat:
        raise UserError("--system is what a conversation begins with; add --chat, or put it into the prompt")
    for name, least in (("batch", 1), ("tensor", 1), ("seed", 0)):
        if not least <= getattr(arguments, name) < 2**32:
            raise UserError(f"--{name}={getattr(arguments, name)} must be at least {least} and below 2**32")


def _generator(arguments: argparse.Namespace) -> tuple[Any, Path]:
    source = cli.source_of(arguments.run, arguments.model, "--model")
    from jaxft import cache, numerics
    from jaxft.generator import Generator

    numerics.self_check()
    cache.compile_cache(Path(source))
    flags = {name: getattr(arguments, name) for name in SETTINGS}
    generator = Generator(
        source,
        flags | {"early_stopping": STOPPING[arguments.early_stopping]},
        dtype=arguments.dtype,
        batch=arguments.batch,
        tensor=arguments.tensor,
        seed=arguments.seed,
    )
    for text in generator.said:
        print(text, file=sys.stderr)
    return generator, generator.folder


def _print(pieces: Any) -> str:
    """Prints pieces of a text as they come; returns the whole."""
    text = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print(flush=True)
    return text


def _chat(generator: Any, folder: Path, system: str, *, stream: bool) -> None:
    template = _template(folder)
    messages = [{"role": "system", "content": system}] if system else []
    for turn in itertools.count():
        try:
            said = input("> ")
        except EOFError:
            print()
            return
        if said.strip() == "/quit":
            return
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        # The template has the special tokens.
        (ids,) = generator.ids([template.prompt(messages)], ["the conversation"], special=False)
        answer = _print(generator.stream(ids, turn) if stream else generator.write([ids], turn))
        messages.append({"role": "assistant", "content": answer})


def _file(arguments: argparse.Namespace) -> None:
    """Writes `output` aside and renames it when it is complete."""
    output = Path(arguments.output)
    cli.check_output(output, Path(arguments.input))
    rows = cli.read_input(arguments.input)  # what is wrong with it is said before the model loads
    generator, folder = _generator(arguments)
    template = functools.cache(lambda: _template(folder))
    prefix, column = _as_trained(arguments)
    count = 0
    with atomic.file(output, shared=True) as draft, draft.open("w", encoding="utf-8") as out:
        for chunk in cli.chunks(rows, CHUNK * arguments.batch):
            prompts = [_ids(generator, template, where, row, prefix, column) for where, row in chunk]
            texts = generator.write(prompts, count)
            for (_, row), text in zip(chunk, texts, strict=True):
                out.write(json.dumps({**row, "generated": text}, ensure_ascii=False) + "\n")
            count += len(chunk)
    cli.say(f"{count:,} texts written: {output}")


def _as_trained(arguments: argparse.Namespace) -> tuple[str, str]:
    """(what comes before every prompt, the column of prompts, "": any of COLUMNS), as in the training of --run."""
    if not arguments.run:
        return "", arguments.text
    _, task, section = cli.task_of(arguments.run)
    if not getattr(task, "generates", False):
        return "", arguments.text
    if section["prefix"]:
        print(f"before every prompt, as in training: {section['prefix']!r}", file=sys.stderr)
    return section["prefix"], arguments.text or section[task.flags["text"]]


def _template(folder: Path) -> Any:
    from jaxft.hf.chat import Template

    return Template(folder)


def _ids(generator: Any, template: Any, where: str, row: Any, prefix: str, column: str) -> Any:
    """The tokens of a row's prompt; of a list of messages those that the chat template makes of it."""
    prompt = _prompt(where, row, column)
    if isinstance(prompt, str):
        return generator.ids([prefix + prompt], [where])[0]
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in prompt):
        raise UserError(f"{where}: a conversation is a list of messages, each with a role and a content")
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: the conversation ends with no question; what the assistant says is to be written")
    # The template has the special tokens.
    return generator.ids([template().prompt(prompt, row.get("tools"))], [where], special=False)[0]


def _prompt(where: str, row: Any, column: str) -> Any:
    """A text, or a list of messages."""
    if isinstance(row, BadRow):
        raise UserError(f"{where}: {row}; mend the row")
    name = column or next((name for name in COLUMNS if name in row), "")
    if name not in row and isinstance(row.get(name.partition(".")[0]), dict):
        from jaxft.tasks.text import text_at

        try:
            return text_at(row, name)
        except BadRow as reason:
            raise UserError(f"{where}: {reason}; it must be a text") from reason
    if name not in row:
        wanted = f"column {column!r}" if column else f"column called {' or '.join(COLUMNS)}"
        raise UserError(f"{where}: no {wanted}; the row has: {', '.join(map(str, row))}. Name one with --text=")
    if not isinstance(row[name], (str, list)):
        raise UserError(f"{where}: {name}={row[name]!r} must be a text, or a list of messages")
    return row[name]


if __name__ == "__main__":
    main()
