"""From config to batches: source, tokenizer, token caches and packing plans of a run."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache
from jaxft.config import Config
from jaxft.data import DATASETS, pack, pipeline, tokens
from jaxft.hf import load as hf_load
from jaxft.hf import tokenizer
from jaxft.registry import BadRow, UserError, call
from jaxft.tasks import TASKS

Say = Callable[[str], None]
PURPOSE = {"train": "learn from", "validation": "choose the best checkpoint by; data.test alone is optional"}


@dataclass(frozen=True)
class Inputs:
    """Everything that a run reads."""

    task: Any
    encoder: Any
    tokenizer_folder: Path
    hf_folder: Path | None  # the checkpoint to start from
    splits: dict[str, Any]  # split -> Split
    caches: dict[str, Any]  # split -> TokenCache
    plans: dict[str, Any]  # split -> Plan
    length: int

    @property
    def attended(self) -> float:
        """Over how many tokens a training token attends, on average: sum of squares / sum of the lengths."""
        lengths = self.caches["train"].lengths.astype(np.float64)
        return float((lengths**2).sum() / lengths.sum())

    def identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to see the same batches."""
        return {f"data.{split}": c.fingerprint for split, c in self.caches.items()} | {
            "tokenizer": self.encoder.fingerprint
        }

    def train_batches(
        self, config: Config, start: int, process: int, processes: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of global batches start, start + 1, ... without end."""
        return pipeline.batches(
            self.caches["train"],
            self.plans["train"],
            batch=config.train.batch,
            row_length=self.length,
            seed=config.seed,
            start=start,
            process=process,
            processes=processes,
            shuffle=True,
        )

    def places(self, batch: dict[str, np.ndarray]) -> list[str]:
        """Where the examples of a training batch were read: "train.jsonl:17"."""
        rows = self.caches["train"].row[batch["example"][batch["example"] >= 0]]
        return [self.splits["train"].where(int(row)) for row in rows]

    def eval_batches(self, split: str, batch: int, process: int, processes: int) -> Iterator[dict[str, np.ndarray]]:
        """One pass over `split` in order."""
        return pipeline.eval_batches(
            self.caches[split],
            self.plans[split],
            batch=batch,
            row_length=self.length,
            process=process,
            processes=processes,
        )


def prepare(config: Config, tokenizer_folder: Path, hf_folder: Path | None, say: Say) -> Inputs:
    """Reads the data, fits the task to them, and builds what is not cached yet. Raises UserError before any compile.

    The tokenizer is that of `hf_folder`, the checkpoint to start from; without one it is trained in `tokenizer_folder`.
    """
    dataset = call(DATASETS, config.data, "data")
    for name in ("train", "validation"):
        if name not in dataset.splits:
            raise UserError(f"data.{name} names no split; a run needs one to {PURPOSE[name]}")
    task = call(TASKS, config.task, "task").fit(dataset.splits, dataset.label_names)
    if hf_folder is not None:
        task = _with_labels_of(task, hf_folder, config.model.reset_head, say)
        tokenizer_folder = hf_folder
    elif not tokenizer_folder.exists():
        say(f"training a WordPiece tokenizer of {config.tokenizer.vocab} entries")
        tokenizer.train_wordpiece(
            _texts(task, dataset.splits["train"]),
            vocab=config.tokenizer.vocab,
            lowercase=config.tokenizer.lowercase,
            folder=tokenizer_folder,
            positions=config.input.length,
        )
    encoder = tokenizer.load(tokenizer_folder)
    caches, plans = {}, {}
    for name, split in dataset.splits.items():
        caches[name] = build_cache(task, encoder, split, config.input.length, config.input.on_bad)
        plans[name] = make_plan(caches[name], config, name)
        counts, plan = caches[name].counts, plans[name]
        say(
            f"{name}: {counts['kept']:,} of {counts['rows']:,} rows"
            + (f" ({counts['bad']:,} bad rows skipped)" if counts["bad"] else "")
            + (f", {counts['truncated']:,} cut to {config.input.length} tokens" if counts["truncated"] else "")
            + f"; packed into {plan.rows:,} rows, {1 - plan.fill:.1%} padding"
        )
    return Inputs(task, encoder, tokenizer_folder, hf_folder, dataset.splits, caches, plans, config.input.length)


def _with_labels_of(task: Any, hf_folder: Path, reset_head: bool, say: Say) -> Any:
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


def build_cache(task: Any, encoder: Any, split: Any, length: int, on_bad: str) -> Any:
    """The token cache of one split, from the private cache folder where it is already there."""
    return tokens.build(
        split,
        task.example,
        lambda texts: encoder.encode(texts, length),
        key={"tokenizer": encoder.fingerprint, "task": repr(task), "length": str(length)},
        folder=str(cache.private_dir("tokens")),
        on_bad=on_bad,
    )


def make_plan(tokens_of_split: Any, config: Config, split: str) -> Any:
    """Training rows hold examples in random company; the other splits are planned from the same seed."""
    return pack.plan(
        tokens_of_split.lengths, row_length=config.input.length, max_segments=config.input.pack, seed=config.seed
    )


def _texts(task: Any, split: Any) -> Iterator[str]:
    for row in split.rows:
        try:
            example = task.example(row)
        except BadRow:
            continue  # counted, or refused, when the token cache is built
        yield example.text
        if example.pair:
            yield example.pair
