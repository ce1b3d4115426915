"""What all verbs share: flags, the one way out for a known failure, the model a folder holds."""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft import disk, memory, remote
from jaxft.registry import UserError
from jaxft.signals import Stopped, leave


def say(text: str) -> None:
    """A line for the person who watches, from process 0 only."""
    jax = sys.modules.get("jax")
    if jax is None or jax.process_index() == 0:
        print(text, flush=True)


def quiet_libraries() -> None:
    """Keeps the progress reports of libraries (TFDS, Orbax) off the screen; their warnings stay."""
    from absl import logging

    logging.set_verbosity(logging.WARNING)


COLUMNS = ("text", "pair", "image", "choices", "stem", "label")  # flags that name one
# What helps a verb that labels rows; its steps have a fixed number of them.
LABELLING_FIX = "Set one of: --length lower; --dtype=bfloat16; or use a device with more memory. Nothing was written"


def guarded(
    work: Callable[[], Any],
    *,
    memory_fix: str = "Use a machine with more. Nothing was written",
    stopped: str = "stopped; nothing was written",
) -> Any:
    """Runs `work`; a user's mistake, a stop signal, a full disk or memory end the process with one message and a code.

    `memory_fix` is what to do about a lack of memory; `stopped` is what to say of Ctrl-C where `work` does not.
    """
    quiet_libraries()
    try:
        with _Shortages(memory_fix):
            return work()
    except (UserError, Stopped) as error:
        leave(str(error), error.code)
    except KeyboardInterrupt:
        leave(f"SIGINT: {stopped}", 130)


class _Shortages(contextlib.AbstractContextManager[None]):
    """Inside, a lack of memory or of disk becomes the UserError that explains it; all else passes untouched."""

    def __init__(self, memory_fix: str):
        self._memory_fix = memory_fix

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, UserError):
            return
        if memory.is_short(error):
            raise memory.explained(error, self._memory_fix) from error
        if disk.is_full(error):
            raise disk.explained(error) from error


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags that name a model and the columns of rows."""
    flags = argparse.ArgumentParser(prog=program, description=description)
    flags.add_argument("--run", default="", help="folder of a finished run")
    flags.add_argument("--hf", default="", help="instead of --run: hub id or local Hugging Face folder")
    flags.add_argument("--text", default="", help="column of the text (default: the run's, or 'text')")
    flags.add_argument("--pair", default="", help="column of the second text (default: the run's, or none)")
    flags.add_argument("--image", default="", help="column of the image (default: the run's, or 'image')")
    flags.add_argument("--choices", default="", help="column of the list of choices, or their columns: a,b,c,d")
    flags.add_argument("--stem", default="", help="column of how every choice begins (default: the run's, or none)")
    flags.add_argument("--label", default="", help="column of the label (default: the run's, or 'label')")
    flags.add_argument(
        "--length", type=int, default=0, help="tokens to read at most (default: as many as the model was trained on)"
    )
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matmuls and activations")
    return flags


def add_adapters(flags: argparse.ArgumentParser) -> None:
    """The flag that names adapters of one model."""
    flags.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter (hub id, folder, or a run's hf/); several are compared, each with columns of its NAME. "
        "With --hf: of that model, else of the one that it names",
    )


def classifiers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name of an adapter -> the model with it, "" -> the model that --run or --hf names; of one model, read once."""
    if not arguments.adapter:
        return {"": classifier(arguments)}
    if arguments.run:
        raise UserError(f"--adapter with --run={arguments.run}: name the run's hf/ as another --adapter=NAME=FOLDER")
    named = dict(_named(text) for text in arguments.adapter)
    if len(named) < len(arguments.adapter):
        raise UserError(f"--adapter: a NAME is there twice: {', '.join(text for text in arguments.adapter)}")
    found: dict[str, Any] = {}
    for name, folder in named.items():
        like = next(iter(found.values()), None)
        found[name] = classifier(arguments, source=folder, base=arguments.hf, field=f"--adapter {name}", like=like)
    return found


def _named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--adapter={text!r}: write --adapter=NAME=FOLDER")
    return name, folder


def classifier(arguments: argparse.Namespace, source: str = "", **options: Any) -> Any:
    """The model that `source`, or --run or --hf, names, with the run's columns where the flags name none."""
    source = source or source_of(arguments.run, arguments.hf)
    task: dict[str, Any] = {}
    if arguments.run:
        _, _, section = task_of(arguments.run)
        # The classes are those of the hub folder: the config may have left them to the data.
        task = {option: value for option, value in section.items() if option not in ("name", "metric", "classes")}
    task |= {option: value for option in COLUMNS if (value := getattr(arguments, option))}
    from jaxft import cache, numerics
    from jaxft.classifier import Classifier

    numerics.self_check()
    cache.compile_cache(Path(source))
    return Classifier(source, task=task, length=arguments.length, dtype=arguments.dtype, **options)


def task_of(run: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """(config, class and section of the task) that the model of a run is used for (tasks.used_for)."""
    from jaxft.config import parse
    from jaxft.runfolder import RunFolder, read_json
    from jaxft.tasks import used_for

    config = parse(read_json(RunFolder(run_folder(run)).config)["config"])
    return config, *used_for(config.task)


def read_input(path: str, *, images: bool = False) -> Iterator[Any]:
    """(where, row or BadRow) of --input. Raises UserError at once for a file that is missing, unreadable or empty.

    `images`: it may be a folder of images, too.
    """
    from jaxft.data import files, folders

    rows = folders.read_rows(Path(path)) if images and Path(path).is_dir() else files.read_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"--input={path} has no rows")
    return itertools.chain([first], rows)


def chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def check_output(path: Path, source: Path | None = None, flag: str = "--output") -> None:
    """Raises UserError where `flag` cannot be written, or is `source`: before the work, not after it."""
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{flag}={path} is the input itself; name another file")
    if path.is_dir():
        raise UserError(f"{flag}={path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{flag}={path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag}={path}: the folder {path.parent} cannot be written")


def run_folder(run: str) -> Path:
    """The folder of --run; for a URL a copy of its config and its export. Raises UserError where a URL has neither."""
    return remote.folder(run, "--run", lambda name: name == "config.json" or name.startswith("hf/"))


def source_of(run: str, hf: str, flag: str = "--hf") -> str:
    """The hub folder that --run or `flag` names: exactly one of the two. Raises UserError otherwise."""
    if bool(run) == bool(hf):
        raise UserError(f"name one of --run=RUN_FOLDER and {flag}=HUB_ID_OR_FOLDER")
    if hf:
        return hf
    folder = run_folder(run)
    if not folder.is_dir():
        raise UserError(f"--run={run}: no such folder")
    if not (folder / "hf").is_dir():
        raise UserError(
            f"--run={run} has no hf/ folder: the run is not finished. Finish it, or export a checkpoint with "
            f"python -m jaxft.export --run={run} --out=DIR and pass {flag}=DIR"
        )
    return str(folder / "hf")
