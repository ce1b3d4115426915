"""Running text: documents that are tokenised whole, and rows cut from all of them in a row (data/corpus.py)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache
from jaxft.config import Config
from jaxft.data import blanks, corpus, tokens
from jaxft.data.pipeline import WHOLE, Batch, Share
from jaxft.hf import tokenizer, vocabulary
from jaxft.inputs import text
from jaxft.inputs.base import Say, kept, listed, read
from jaxft.registry import UserError

beside = text.beside
PREPARED = "prepared"  # the data set whose rows are tokens already


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

    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        return corpus.batches(
            self.caches["train"],
            self.change,
            batch=config.train.batch,
            row_length=self.length,
            seed=self.seed,
            start=start,
            share=share,
        )

    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        return corpus.eval_batches(
            self.caches[split],
            self.change,
            batch=batch,
            row_length=self.length,
            seed=self.seed,
            share=share,
        )

    def places(self, batch: Batch) -> list[str]:
        """Where the document was read that each row of a training batch begins in."""
        held, rows_B = self.caches["train"], batch["example"][batch["example"] >= 0]
        document_B = np.searchsorted(held.offsets, rows_B * self.length, side="right") - 1
        return [self.splits["train"].where(int(held.row[document])) for document in document_B]


class Reader(text.Reader):
    """The tokenizer of a hub folder, given documents. `length`: tokens of a row (0: as trained)."""

    most = 2**31  # documents to hold at once: all, since each goes on in the row that the one before ends in

    def encode(self, texts: list[tuple[Any, str | None]]) -> list[tokenizer.Encoded]:
        return _encode(self._encoder, texts)

    def batches(self, examples: Sequence[Any], places: Sequence[str], rows: int, seed: int = 0) -> Iterator[Batch]:
        held = tokens.in_memory(examples, self.encode)
        held.check_ids(self._cfg.vocab, self._cfg.types, places.__getitem__)
        pieces = functools.partial(_pieces, [held], self._length)
        change = self._task.change(vocabulary.of(self._encoder), self._cfg, pieces)
        return corpus.eval_batches(held, change, batch=rows, row_length=self._length, seed=seed, share=WHOLE)


def placeholders(config: Config) -> dict[str, Any]:
    if config.input.pack != 1:
        raise UserError(
            f"input.pack={config.input.pack}: the task reads running text, which is cut into rows as it comes; set 1"
        )
    if config.tokenizer is None and config.data["name"] == PREPARED:
        return {"vocab": 2**16, "pad_id": 0}  # the corpus brings a tokenizer; this one is enough for any
    return text.placeholders(config)


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> CorpusInputs:
    """Reads the data, trains the tokenizer in `folder` where `hf_folder` brings none, and tokenises what is not cached.

    Raises UserError before any compile.
    """
    length = text.checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    if dataset.tokenizer is None:
        encoder = text.encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)
    else:
        encoder = _tokenizer_of(dataset.tokenizer, config, folder, hf_folder)
    caches = {}
    for name, split in dataset.splits.items():
        held = caches[name] = _cache(task, encoder, split, config.input.on_bad)
        documents, size = len(held.lengths), int(held.offsets[-1])
        say(
            f"{name}: {kept(held.counts)}: {documents:,} documents of {size:,} tokens, "
            f"{held.labels.sum(dtype=np.int64) / size:.2f} bytes a token; "
            f"{corpus.rows(held, length):,} rows of {length} tokens"
        )
        for line in listed(name, held):
            say(line)
    change = task.change(vocabulary.of(encoder), cfg, functools.partial(_pieces, caches.values(), length))
    return CorpusInputs(task, hf_folder, dataset.splits, caches, encoder, length, config.seed, change)


def blank(config: Config, cfg: Any, task: Any) -> Batch:
    """A batch of one row that is a document, as the task changes it."""
    length = text.checked_length(config, cfg)
    held = blanks.cache([length], 0)
    change = task.change(vocabulary.blank(cfg.vocab), cfg, functools.partial(_pieces, [held], length))
    one = np.zeros(1, np.int64)
    return change(corpus.assemble(held, one, length), corpus.Draws((0,), 1, one))


def _tokenizer_of(made: Path, config: Config, folder: Path, hf_folder: Path | None) -> tokenizer.TextEncoder:
    """The tokenizer that made the tokens of the corpus, from the run's own copy in `folder`.

    Raises UserError where a checkpoint, or an earlier start of the run, has another one.
    """
    of_corpus = tokenizer.load(made)
    if hf_folder is not None:
        if tokenizer.load(hf_folder).fingerprint != of_corpus.fingerprint:
            raise UserError(
                f"data.folder={config.data['folder']!r} was made with another tokenizer than that of "
                f"model.hf={config.model.hf!r}; prepare the corpus with --config.tokenizer.hf={config.model.hf}"
            )
        return of_corpus
    if not folder.exists():
        tokenizer.copy(made, folder, config.input.length)
    elif tokenizer.load(folder).fingerprint != of_corpus.fingerprint:
        raise UserError(
            f"data.folder={config.data['folder']!r} was made with another tokenizer than the run's in {folder}; "
            "use another --workdir"
        )
    return of_corpus


def _encode(encoder: tokenizer.TextEncoder, texts: list[tuple[Any, str | None]]) -> list[tokenizer.Encoded]:
    """Ids of documents; of those that are ids already these."""
    if texts and isinstance(texts[0][0], np.ndarray):
        return [tokenizer.Encoded(ids.astype(np.uint32), np.zeros(len(ids), np.uint32), False) for ids, _ in texts]
    return encoder.encode_documents(texts)


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
        functools.partial(_encode, encoder),
        key={"tokenizer": encoder.fingerprint, "named": repr(sorted(encoder.named.items())), "column": task.text},
        folder=str(cache.private_dir("tokens")),
        on_bad=on_bad,
    )
