"""What a run asks of its inputs, whatever these are."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import Config
from jaxft.data import DATASETS
from jaxft.data.pipeline import Batch, Share
from jaxft.data.source import quoted
from jaxft.hf import load as hf_load
from jaxft.registry import UserError, call
from jaxft.tasks import TASKS, used_for

Say = Callable[[str], None]
PURPOSE = {"train": "learn from", "validation": "choose the best checkpoint by; data.test alone is optional"}


@dataclass(frozen=True)
class Inputs(abc.ABC):
    """Everything that a run reads. `caches`: split -> its examples, computed once (data/)."""

    task: Any
    hf_folder: Path | None  # the checkpoint to start from
    splits: dict[str, Any]  # split -> Split
    caches: dict[str, Any]

    @property
    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """Fields of a model's Config that the data tell."""

    @abc.abstractmethod
    def check(self, cfg: Any) -> None:
        """Raises UserError where an example does not fit the model of `cfg`."""

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Tokens of each training example, or piece of one, int64 [X]."""

    @property
    def examples_to_train(self) -> int:
        """How many there are, each with all of its pieces (inputs.PIECES)."""
        return len(self.lengths)

    @abc.abstractmethod
    def rows(self, split: str) -> int:
        """Rows of the split, which hold one example or several."""

    @abc.abstractmethod
    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        """The rows of `share` of global batches start, start + 1, ... without end."""

    @abc.abstractmethod
    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        """One pass over `split` in order: of each global batch the rows of `share`."""

    def author(self, net: Any, config: Config) -> Any:
        """What adds texts that `net` writes to the meter of an evaluation; None: nothing does."""
        return None

    def examples(self, split: str) -> "Examples":
        """What the task makes of the split's rows."""
        return Examples(self.splits[split].rows, self.task.example)

    @property
    def attended(self) -> float:
        """Over how many tokens a training token attends, on average: sum of squares / sum of the lengths."""
        lengths = self.lengths.astype(np.float64)
        return float((lengths**2).sum() / lengths.sum())

    def before_training(self, run: Any) -> "Inputs":
        """These inputs with what the weights that `run` begins with say of them, where the task asks for that."""
        return self

    def identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to see the same batches."""
        return {f"data.{split}": held.fingerprint for split, held in self.caches.items()}

    def places(self, batch: Batch) -> list[str]:
        """Where the examples of a training batch were read: "train.jsonl:17"."""
        rows = self.caches["train"].row[batch["example"][batch["example"] >= 0]]
        return [self.splits["train"].where(row) for row in dict.fromkeys(rows.tolist())]  # each with all its pieces


class Examples(Sequence[Any]):
    """Rows as a task's examples, each made when it is asked for, which may raise BadRow."""

    def __init__(self, rows: Sequence[Any], example: Callable[[Any], Any]):
        self._rows, self._example = rows, example

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._example(self._rows[index])


class Reader(abc.ABC):
    """What a hub folder says of its inputs, for the verbs that label rows. `fields`: of the model's Config."""

    most: int  # examples to hold at once
    fields: dict[str, Any]

    @abc.abstractmethod
    def fit(self, cfg: Any) -> None:
        """Settles what the model of `cfg` decides. Raises UserError where the two do not belong together."""

    @abc.abstractmethod
    def example(self, example: Any) -> Any:
        """What is kept of an example until its batch is made. Raises BadRow."""

    @abc.abstractmethod
    def batches(self, examples: Sequence[Any], places: Sequence[str], rows: int) -> Iterator[Batch]:
        """Batches of `rows` rows with all `examples`, which stand at `places` ("x.jsonl:17").

        Raises UserError with the place of one that does not fit the model.
        """

    def gathered(self, examples: Sequence[Any], outputs: int, computed: Iterable[tuple[Batch, np.ndarray]]) -> Any:
        """float32 [n, outputs], in the order of `examples`, of batches with their logits."""
        out = np.zeros((len(examples), outputs), np.float32)
        for batch, logits_BSC in computed:
            real_BS = batch["example"] >= 0
            out[batch["example"][real_BS]] = logits_BSC[real_BS]
        return out


def section(config: Config) -> Mapping[str, Any]:
    """The options of the task that reads the inputs: of a distillation those of the task that is distilled."""
    return used_for(config.task)[1]


def read(config: Config, hf_folder: Path | None, say: Say) -> tuple[Any, Any]:
    """(the task fitted to the data, the data set) of a run. Raises UserError where a split is missing."""
    dataset = call(DATASETS, config.data, "data")
    for name in ("train", "validation"):
        if name not in dataset.splits:
            raise UserError(f"data.{name} names no split; a run needs one to {PURPOSE[name]}")
    task = call(TASKS, config.task, "task").fit(dataset.splits, dataset.label_names)
    if hf_folder is not None:
        task = with_labels_of(task, hf_folder, config.model.reset_head, say)
    return task, dataset


def with_labels_of(task: Any, hf_folder: Path, reset_head: bool, say: Say) -> Any:
    """The task with its classes in the order of a checkpoint whose head was trained on the same ones."""
    labels = hf_load.read_config(hf_folder).get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    ours = getattr(task, "classes", ())
    if reset_head or not ours or names == ours or all(name.startswith("LABEL_") for name in names):
        return task
    if set(names) == set(ours):
        say(f"classes in the checkpoint's order: {', '.join(names)}")
        return dataclasses.replace(task, classes=names)
    say(
        f"the checkpoint's head, if it has one, was trained for {', '.join(names)}, the data have {', '.join(ours)}: "
        "--config.model.reset_head=True draws a new one"
    )
    return task


def listed(name: str, held: Any) -> Iterator[str]:
    """What to say of the rows of split `name` that its cache has not, for want of sense or by an option."""
    for kind, fate in (("bad", "cannot be used and are skipped"), ("dropped", "left out")):
        if count := held.counts.get(kind, 0):
            file = held.folder / f"{kind}_rows.json"
            yield f"{name}: {count:,} of {held.counts['rows']:,} rows {fate} (listed in {file}):\n" + quoted(
                getattr(held, kind)
            )


def kept(counts: dict[str, int]) -> str:
    """How many rows of a split are used, in words."""
    bad = f" ({counts['bad']:,} bad rows skipped)" if counts["bad"] else ""
    return f"{counts['kept']:,} of {counts['rows']:,} rows{bad}"
