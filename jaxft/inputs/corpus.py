"""Running text: documents that are tokenised whole, and rows cut from all of them in a row (data/corpus.py)."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache
from jaxft.config import Config
from jaxft.data import corpus, tokens
from jaxft.data.pipeline import Batch
from jaxft.hf import tokenizer, vocabulary
from jaxft.inputs import text
from jaxft.inputs.base import Say, kept, read
from jaxft.registry import UserError

beside = text.beside


@dataclass(frozen=True)
class CorpusInputs(text.Tokenized):
    """Rows that the task may `change` at random."""

    seed: int
    change: Callable[..., Batch]

    def check(self, cfg: Any) -> None:
        """Raises UserError for a token without an embedding."""
        tokenizer.check_vocab(self.encoder, cfg.vocab)

    @property
    def lengths(self) -> np.ndarray:
        return corpus.pieces(self.caches["train"], self.length)[1]

    def rows(self, split: str) -> int:
        return corpus.rows(self.caches[split], self.length)

    def train_batches(self, config: Config, start: int, process: int, processes: int) -> Iterator[Batch]:
        return corpus.batches(
            self.caches["train"],
            self.change,
            batch=config.train.batch,
            row_length=self.length,
            seed=self.seed,
            start=start,
            process=process,
            processes=processes,
        )

    def eval_batches(self, split: str, batch: int, process: int, processes: int) -> Iterator[Batch]:
        return corpus.eval_batches(
            self.caches[split],
            self.change,
            batch=batch,
            row_length=self.length,
            seed=self.seed,
            process=process,
            processes=processes,
        )

    def places(self, batch: Batch) -> list[str]:
        """Where the document was read that each row of a training batch begins in."""
        held, rows_B = self.caches["train"], batch["example"][batch["example"] >= 0]
        document_B = np.searchsorted(held.offsets, rows_B * self.length, side="right") - 1
        return [self.splits["train"].where(int(held.row[document])) for document in document_B]


def placeholders(config: Config) -> dict[str, Any]:
    if config.input.pack != 1:
        raise UserError(
            f"input.pack={config.input.pack}: the task reads running text, which is cut into rows as it comes; set 1"
        )
    return text.placeholders(config)


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> CorpusInputs:
    """Reads the data, trains the tokenizer in `folder` where `hf_folder` brings none, and tokenises what is not cached.

    Raises UserError before any compile.
    """
    length = text.checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    encoder = text.encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)
    caches = {}
    for name, split in dataset.splits.items():
        held = caches[name] = _cache(task, encoder, split, config.input.on_bad)
        documents, size = len(held.lengths), int(held.offsets[-1])
        say(
            f"{name}: {kept(held.counts)}: {documents:,} documents of {size:,} tokens, "
            f"{held.labels.sum(dtype=np.int64) / size:.2f} bytes a token; "
            f"{corpus.rows(held, length):,} rows of {length} tokens"
        )
    change = task.change(vocabulary.of(encoder), cfg, functools.partial(_pieces, caches.values(), length))
    return CorpusInputs(task, hf_folder, dataset.splits, caches, encoder, length, config.seed, change)


def _pieces(caches: Iterable[Any], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, tokens) of the pieces of all splits, whose rows are numbered on."""
    rows, lengths, before = [], [], 0
    for held in caches:
        row, size = corpus.pieces(held, length)
        rows.append(row + before)
        lengths.append(size)
        before += corpus.rows(held, length)
    return np.concatenate(rows), np.concatenate(lengths)


def _cache(task: Any, encoder: Any, split: Any, on_bad: str) -> Any:
    """The token cache of one split, from the private cache folder where it is already there."""
    return tokens.build(
        split,
        task.example,
        encoder.encode_documents,
        key={"tokenizer": encoder.fingerprint, "named": repr(sorted(encoder.named.items())), "column": task.text},
        folder=str(cache.private_dir("tokens")),
        on_bad=on_bad,
    )
