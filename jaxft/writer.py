"""What a run tells: its progress (progress.py), metrics.jsonl, TensorBoard, Weights & Biases.

metrics.jsonl holds one object a line: {"step": 20, "time": <Unix seconds>, "loss": ...}. JSON has no word for numbers
that are not finite, so they are the strings "NaN", "Infinity", "-Infinity": any reader takes them, float() knows them.
A step whose update was left out has an object of its own: {"step": 7, "time": ..., "skipped_examples": ["x.tsv:3"]},
one whose loss jumped up {"step": 9, "time": ..., "spike_loss": 8.1, "spike_examples": ["x.tsv:4"]}. Where the run went
back because of that, "spike_step" is the step that jumped, and "step" the one from which the run went on.
batches.log holds one line a step, "<step> <16 hex digits>", line n of step n: a hash of the content and order of all
rows of the global batch (data/pipeline.py), which does not depend on the number of processes or on the mesh.
"""

import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from jaxft import atomic, disk
from jaxft.progress import progress
from jaxft.registry import UserError

EXAMPLES_SHOWN = 8  # of a batch


def check_wandb(project: str) -> None:
    """Raises UserError where the package is missing that logs to `project`: before the compile, not after it."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"log.wandb={project!r} needs the package wandb; pip install 'jaxft[wandb]', or set log.wandb=''"
        )


class Writer:
    """Records one run in `folder` from the step after `start`, of `total`; does nothing unless `active` (process 0).

    Opening forgets what a killed run recorded after `start`, so that the logs of a resumed run read like those of an
    unbroken one. `wandb` is the project on Weights & Biases, "" for none; WANDB_MODE=offline is honoured.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        total: int,
        tensorboard: bool,
        wandb: str,
        start: int,
        active: bool = True,
    ):
        self._active = active
        self._total = total
        self._closing = ExitStack()
        self._sinks: list[Callable[[int, Mapping[str, float]], None]] = []
        if not active:
            return
        folder = Path(folder)
        with ExitStack() as closing:  # what is open already is closed when something later fails
            self._metrics = _log_file(folder / "metrics.jsonl", start, _step_of_json, closing)
            self._batches = _log_file(folder / "batches.log", start, _step_of_line, closing)
            if tensorboard:
                self._sinks.append(_tensorboard(folder / "tensorboard", start, closing))
            if wandb:
                self._sinks.append(_wandb(folder, wandb, closing))
            self._show = closing.enter_context(progress(total, start))
            self._closing = closing.pop_all()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of `step`: of training where their names have no "/", as "validation/loss" has one."""
        if not self._active:
            return
        plain = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "time": round(time.time(), 3), **json_numbers(plain)}
        with disk.writing(self._metrics.name):
            self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        for sink in self._sinks:
            sink(step, plain)
        training = {name: value for name, value in plain.items() if "/" not in name}
        if training:
            self._show.update(step, training)

    def skipped(self, step: int, examples: Sequence[str]) -> None:
        """Records that the update of `step` was left out, and where the first examples of its batch were read."""
        self._event(step, {"skipped_examples": examples[:EXAMPLES_SHOWN]})

    def spiked(self, step: int, loss: float, examples: Sequence[str], **more: int) -> None:
        """Records that the `loss` jumped up, and where the first examples of its batch were read."""
        self._event(step, {"spike_loss": loss, "spike_examples": examples[:EXAMPLES_SHOWN], **more})

    def _event(self, step: int, what: Mapping[str, Any]) -> None:
        if self._active:
            record = {"step": step, "time": round(time.time(), 3), **what}
            with disk.writing(self._metrics.name):
                self._metrics.write(json.dumps(record, ensure_ascii=False) + "\n")

    def batch(self, step: int, digest: str) -> None:
        """Records which batch `step` trains on."""
        if self._active:
            with disk.writing(self._batches.name):
                self._batches.write(f"{step} {digest}\n")

    def advance(self, step: int) -> None:
        """Moves the bar: so many steps are begun."""
        if self._active:
            self._show.advance(step)

    def close(self) -> None:
        self._closing.close()


def json_numbers(value: Any) -> Any:
    """`value`, of dicts, lists and plain values, with the numbers that JSON has no word for as text."""
    if isinstance(value, Mapping):
        return {key: json_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _log_file(path: Path, start: int, step_of: Callable[[str], int], closing: ExitStack) -> TextIO:
    closing.enter_context(disk.writing(path))  # a line that found no room is written again at the closing
    return closing.enter_context(_continue(path, start, step_of))


def _continue(path: Path, start: int, step_of: Callable[[str], int]) -> TextIO:
    """Drops the records after `start`, atomically, and opens the file to append.

    A line that cannot be read was half written when the machine went down: it is dropped as well. Line buffered: a
    write costs microseconds and a killed process loses none, so the logs never lag behind a checkpoint.
    """
    if path.exists():
        with (
            atomic.file(path) as draft,
            path.open(encoding="utf-8", errors="replace") as old,
            draft.open("w", encoding="utf-8") as new,
        ):
            new.writelines(line for line in old if _is_kept(line, start, step_of))
    return path.open("a", encoding="utf-8", buffering=1)


def _is_kept(line: str, start: int, step_of: Callable[[str], int]) -> bool:
    try:
        return line.endswith("\n") and step_of(line) <= start
    except (ValueError, LookupError, TypeError):
        return False


def _step_of_json(line: str) -> int:
    return json.loads(line)["step"]


def _step_of_line(line: str) -> int:
    return int(line.split()[0])


def _tensorboard(folder: Path, start: int, closing: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    from tensorboardX import SummaryWriter

    # purge_step makes TensorBoard drop what a killed run wrote at and after that step; a run may be killed before its
    # first checkpoint, too. Files are named by the second.
    events = SummaryWriter(str(folder), purge_step=start + 1, filename_suffix=f".{start}")
    closing.callback(events.close)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name if "/" in name else f"train/{name}", value, step)

    return write


def _wandb(folder: Path, project: str, closing: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    import wandb
    from wandb.errors import Error as WandbError

    remembered = folder / "wandb_run_id"
    run_id = remembered.read_text(encoding="utf-8").strip() if remembered.exists() else secrets.token_hex(4)
    remembered.write_text(run_id + "\n", encoding="utf-8")
    quiet = wandb.Settings(console="off", silent=True)
    try:
        run = wandb.init(project=project, name=folder.name, id=run_id, resume="allow", dir=str(folder), settings=quiet)
    except WandbError as error:
        raise UserError(f"log.wandb={project!r}: {error}; run `wandb login`, or set WANDB_MODE=offline") from error
    closing.callback(run.finish)
    # Its own counter may only grow; "step" as the axis lets a resumed run go over the same steps again.
    run.define_metric("*", step_metric="step")
    return lambda step, metrics: run.log({"step": step, **metrics})
