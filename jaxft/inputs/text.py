"""Text: a tokenizer, token caches, and rows packed with several examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache
from jaxft.config import Config
from jaxft.data import blanks, pack, pipeline, tokens
from jaxft.data.pipeline import WHOLE, Batch, Share
from jaxft.hf import tokenizer, trainers
from jaxft.inputs import PIECES, base
from jaxft.inputs.base import Inputs, Say, kept, listed, read
from jaxft.registry import BadRow, UserError, check_name, lookup

Encode = Callable[[Any, list[Any], int], Sequence[Any]]  # a TextEncoder, texts, the most tokens -> what was read


@dataclass(frozen=True)
class Tokenized(Inputs):
    """What a tokenizer has read, in rows of `length` tokens."""

    encoder: Any
    length: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"vocab": self.encoder.vocab_size, "pad_id": self.encoder.pad_id}

    def identity(self) -> dict[str, str]:
        return super().identity() | {"tokenizer": self.encoder.fingerprint}


@dataclass(frozen=True)
class TextInputs(Tokenized):
    """`plans` say, for each split, which examples share a row."""

    plans: dict[str, Any]  # split -> Plan

    def check(self, cfg: Any) -> None:
        """Raises UserError for a token without an embedding."""
        tokenizer.check_vocab(self.encoder, cfg.vocab)
        for name, held in self.caches.items():
            held.check_ids(cfg.vocab, cfg.types, self.splits[name].where)

    @property
    def lengths(self) -> np.ndarray:
        return self.caches["train"].lengths

    @property
    def examples_to_train(self) -> int:
        return len(self.caches["train"].begins) - 1

    def rows(self, split: str) -> int:
        return self.plans[split].rows

    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        return pipeline.batches(
            self.caches["train"],
            self.plans["train"],
            batch=config.train.batch,
            row_length=self.length,
            seed=config.seed,
            start=start,
            share=share,
            shuffle=True,
        )

    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        return pipeline.eval_batches(
            self.caches[split],
            self.plans[split],
            batch=batch,
            row_length=self.length,
            share=share,
        )


def placeholders(config: Config) -> dict[str, Any]:
    if config.tokenizer is None:
        raise UserError(
            "tokenizer=None, but the task reads text; give it a section: "
            "dict(name='wordpiece', vocab=8192, lowercase=True)"
        )
    check_name(trainers.TRAINERS, config.tokenizer.name, "tokenizer.name")
    return {"vocab": config.tokenizer.vocab, "pad_id": 0}


def prepare(
    config: Config,
    cfg: Any,
    folder: Path,
    hf_folder: Path | None,
    say: Say,
    encode: Encode = tokenizer.TextEncoder.encode,
) -> TextInputs:
    """Reads the data, fits the task to them, and builds what is not cached yet. Raises UserError before any compile.

    The tokenizer is that of `hf_folder`, the checkpoint to start from; without one it is trained in `folder`.
    """
    length = checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    encoder = encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)
    caches, plans = packed(
        config, dataset, lambda split: cache_of(task, encoder, encode, split, length, config.input.on_bad), say
    )
    return TextInputs(task, hf_folder, dataset.splits, caches, encoder, length, plans)


def blank(config: Config, cfg: Any, task: Any, *, tags: bool = False, chars: bool = False) -> Batch:
    """A batch of one row that a single example fills (data/blanks.py)."""
    length = checked_length(config, cfg)
    held = blanks.cache([length], None if tags else task.blank, tags=tags, chars=chars)
    return pipeline.assemble(held, _plans(config, {"": held})[""], np.zeros(1, np.int64), length)


def _plans(config: Config, caches: dict[str, Any]) -> dict[str, Any]:
    """Rows hold examples in random company, of all splits by the same seed."""
    shape = dict(row_length=config.input.length, max_segments=config.input.pack, seed=config.seed)
    return {name: pack.plan(held.lengths, **shape) for name, held in caches.items()}


def packed(
    config: Config,
    dataset: Any,
    cache_of: Callable[[Any], Any],
    say: Say,
    what: str = "words",
    plans_of: Callable[[Config, dict[str, Any]], dict[str, Any]] = _plans,
    pieces: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(caches, plans) of all splits, whose numbers are said; `what` has labels where tokens have them.

    pieces: what is cut where rows have several, a key of inputs.PIECES.
    """
    caches = {name: cache_of(split) for name, split in dataset.splits.items()}
    plans = plans_of(config, caches)
    cut = f" {PIECES[pieces]} cut" if pieces else " cut"
    for name, plan in plans.items():
        counts = caches[name].counts
        say(
            f"{name}: {kept(counts)}"
            + (f", {counts['truncated']:,}{cut} to {config.input.length} tokens" if counts["truncated"] else "")
            + (f", {counts['lost']:,} {what} lost, which are not scored" if counts["lost"] else "")
            + f"; packed into {plan.rows:,} rows, {1 - plan.fill:.1%} padding"
        )
        for line in listed(name, caches[name]):
            say(line)
    return caches, plans


def checked_length(config: Config, cfg: Any) -> int:
    """input.length. Raises UserError where the model has fewer positions."""
    length = config.input.length
    if cfg.positions < length:
        raise UserError(f"input.length={length} exceeds the model's {cfg.positions} positions; set it lower")
    return length


def encoder_of(
    config: Config, task: Any, train: Any, folder: Path, hf_folder: Path | None, say: Say
) -> tokenizer.TextEncoder:
    """The tokenizer of the checkpoint, or one that is trained on the texts of `train` and kept in `folder`."""
    if hf_folder is None and not folder.exists():
        assert config.tokenizer, "placeholders has looked"
        section = config.tokenizer
        say(f"training a {section.name} tokenizer of {section.vocab} entries")
        lookup(trainers.TRAINERS, section.name, "tokenizer.name")(
            _texts(task, train),
            vocab=section.vocab,
            lowercase=section.lowercase,
            folder=folder,
            positions=config.input.length,
        )
    return tokenizer.load(folder if hf_folder is None else hf_folder)


def beside(config: Config, cfg: Any, folder: Path, hf_folder: Path | None) -> Callable[[Path], object]:
    """Writes the tokenizer of a run into an export."""
    return lambda target: tokenizer.copy_files(hf_folder or folder, target, config.input.length)


def cache_of(task: Any, encoder: Any, encode: Encode, split: Any, length: int, on_bad: str) -> Any:
    """The token cache of one split, from the private cache folder where it is already there."""
    return tokens.build(
        split,
        task.example,
        lambda texts: encode(encoder, texts, length),
        key={"tokenizer": encoder.fingerprint, "task": repr(task), "length": str(length)},
        folder=str(cache.private_dir("tokens")),
        on_bad=on_bad,
    )


def _texts(task: Any, split: Any) -> Iterator[str]:
    for row in split.rows:
        try:
            made = task.example(row)
        except BadRow:
            continue  # counted, or refused, when the token cache is built
        for example in made if isinstance(made, list) else [made]:
            yield example.text if isinstance(example.text, str) else " ".join(example.text)
            if example.pair:
                yield example.pair


class Reader(base.Reader):
    """The tokenizer of a hub folder. `length`: the most tokens to read (0: as trained)."""

    most = 4096  # examples to hold at once: enough for the packing to fill rows, little to hold

    def __init__(self, folder: Path, length: int, task: Any):
        self._folder, self._wanted, self._task = folder, length, task
        self._encoder = tokenizer.load(folder)
        self.fields = {"pad_id": self._encoder.pad_id}

    def fit(self, cfg: Any) -> None:
        tokenizer.check_vocab(self._encoder, cfg.vocab)
        self._cfg = cfg
        self._length = min(self._wanted or tokenizer.max_length(self._folder, cfg.positions), cfg.positions)

    def encode(self, texts: list[tuple[Any, str | None]]) -> Sequence[Any]:
        return self._encoder.encode(texts, self._length)

    def example(self, example: Any) -> Any:
        return example

    def batches(self, examples: Sequence[Any], places: Sequence[str], rows: int) -> Iterator[Batch]:
        held = tokens.in_memory(examples, self.encode)
        held.check_ids(self._cfg.vocab, self._cfg.types, places.__getitem__)
        plan = pack.plan(held.lengths, row_length=self._length, max_segments=max(1, self._length // 8), seed=0)
        return pipeline.eval_batches(held, plan, batch=rows, row_length=self._length, share=WHOLE)
