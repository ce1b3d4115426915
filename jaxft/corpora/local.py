"""A corpus on one machine: stages whose finished pieces stay on the disk, so that a killed one goes on from there.

    work/clean/00000.npz     a chunk of records after the rules (parts.py)
    tokenizer/               trained or copied
    work/shards/00000.json   what is in the shards number 0, written when they are complete
    removed.jsonl  report.json  report.html  corpus.json      the end; then work/ goes

What a piece holds follows from the config and the sources alone: not from who made it, when, or beside whom.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import atomic
from jaxft.corpora import ending, parts, pool, shards, sources, tokenizers
from jaxft.corpora.duplicates import exact_duplicates, near_duplicates
from jaxft.corpora.options import Config, cleaner_of, parse
from jaxft.corpora.shards import Ready
from jaxft.corpora.tally import Tally
from jaxft.data.prepared import TOKENIZER, Index, Shard
from jaxft.hf import tokenizer
from jaxft.registry import UserError

Say = Callable[[str], None]
EVERY = 10.0  # seconds between two lines of progress


def prepare(raw: dict[str, Any], config: Config, source: Any, folder: Path, say: Say) -> None:
    """All stages; what is finished is left out. Raises UserError for bad records where config.text says stop."""
    started = time.perf_counter()
    workers = pool.workers_of(config.work.workers)
    (folder / "work" / "clean").mkdir(parents=True, exist_ok=True)
    (folder / "work" / "shards").mkdir(exist_ok=True)
    for left_over in (folder / "work").rglob("*.tmp"):  # of what was killed
        left_over.unlink()
    say(f"reading {len(source.names):,} {'file' if len(source.names) == 1 else 'files'}; {workers} workers")
    documents = _clean(raw, config, source, folder, workers, say)
    leaders = _duplicates(config, documents, say)
    alive_X = (leaders["exact"] < 0) & (leaders["near"] < 0)
    if not alive_X.any():
        raise UserError(f"no document is left of {documents.tally.records:,} records; {ending.why(documents.tally)}")
    split_X = shards.splits_of(documents.digests, config.split)
    encoder = _tokenizer(config, documents, alive_X & (split_X == shards.TRAIN), folder, say)
    dtype = shards.dtype_of(encoder.vocab_size)
    written = _shards(config, documents, alive_X, split_X, folder, dtype, workers, say)
    index = Index(written, source.names, dtype)
    ending.finish(raw, folder, index, documents, leaders, time.perf_counter() - started, say)


@dataclass(frozen=True)
class Documents:
    """All documents that passed the rules, part after part; what is known of each but its text.

    digests: uint64 [X, 2]; signatures: uint32 [X, K], mapped; sizes: int64 [X], bytes; places: int64 [X, 2], file and
    line; offsets: int64 [parts + 1], the first document of each part.
    """

    names: Sequence[str]
    paths: list[Path]
    tally: Tally
    digests: np.ndarray
    signatures: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    offsets: np.ndarray

    def where(self, one: int) -> str:
        file, line = self.places[one].tolist()
        return f"{self.names[file]}:{line}"

    def texts(self, first: int, last: int, wanted_X: np.ndarray) -> Iterator[tuple[int, str]]:
        """(number, text) of the documents of the parts from `first` up to `last` for which `wanted` is true."""
        for part in range(first, last):
            start, end = self.offsets[part : part + 2].tolist()
            if wanted_X[start:end].any():
                for one, text in enumerate(parts.read_texts(self.paths[part]), start):
                    if wanted_X[one]:
                        yield one, text


def _clean(raw: dict[str, Any], config: Config, source: Any, folder: Path, workers: int, say: Say) -> Documents:
    near = config.duplicates.signatures
    width = near.size if near else 0
    target = folder / "work" / "clean"
    held = _Gathered(target.parent / "signatures.bin", width)
    chunks = sources.chunks(source.records(config.text.column), config.work.chunk)

    def work() -> Iterator[tuple[int, Any]]:
        for number, records in enumerate(chunks):
            part = parts.read(target / f"{number:05d}.npz")
            yield number, (records if part is None else None)

    formats = [source.format(number) for number in range(len(source.names))]
    arguments = (raw, list(source.names), formats, str(target))
    clock = _Clock(say)
    with held:
        for number in pool.ordered(cleaning, arguments, work(), workers):
            part = parts.read(target / f"{number:05d}.npz")
            if part is None:
                raise UserError(f"{target / f'{number:05d}.npz'} was written and cannot be read; check the disk", 1)
            held.add(part)
            if config.text.on_bad == "stop":
                ending.refuse_bad(held.tally)
            clock.tick(lambda: f"{held.tally.records:,} records read, {held.tally.kept:,} documents passed the rules")
    return held.documents(source.names)


def cleaning(raw: dict[str, Any], names: list[str], formats: list[str], folder: str) -> Callable[[Any], int]:
    """What a worker runs: it cleans a chunk of records into a part, unless it is there (None), and says its number."""
    config = parse(raw)
    cleaner = cleaner_of(config, names, formats)
    width = cleaner.near.size if cleaner.near else 0

    def clean(piece: tuple[int, Any]) -> int:
        number, records = piece
        if records is not None:
            parts.write(Path(folder) / f"{number:05d}.npz", cleaner.clean(records), width)
        return number

    return clean


class _Gathered:
    """Parts added up, their signatures in a file."""

    def __init__(self, path: Path, width: int):
        self._path, self._width, self.tally = path, width, Tally()
        self._paths: list[Path] = []
        self._columns: dict[str, list[np.ndarray]] = {"digests": [], "sizes": [], "places": []}

    def __enter__(self) -> None:
        self._file = open(self._path, "wb")

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, part: parts.Part) -> None:
        self._paths.append(part.path)
        self.tally.add(part.tally)
        for name, arrays in self._columns.items():
            arrays.append(getattr(part, name))
        self._file.write(part.signatures.tobytes())

    def documents(self, names: Sequence[str]) -> Documents:
        counts = [len(sizes) for sizes in self._columns["sizes"]]
        empty = {
            "digests": np.zeros((0, 2), np.uint64),
            "sizes": np.zeros(0, np.int64),
            "places": np.zeros((0, 2), np.int64),
        }
        columns = {name: np.concatenate([empty[name], *arrays]) for name, arrays in self._columns.items()}
        shape = (sum(counts), self._width)
        mapped = np.memmap(self._path, np.uint32, "r", shape=shape) if all(shape) else np.zeros(shape, np.uint32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Documents(names, self._paths, self.tally, signatures=mapped, offsets=offsets, **columns)


def _duplicates(config: Config, documents: Documents, say: Say) -> dict[str, np.ndarray]:
    """Kind -> for each document the earlier one because of which it goes, -1: none."""
    none_X = np.full(len(documents.sizes), -1, np.int64)
    exact_X = exact_duplicates(documents.digests) if config.duplicates.exact else none_X
    near = config.duplicates.signatures
    near_X = near_duplicates(near, documents.signatures, exact_X < 0) if near else none_X
    say(f"{len(none_X):,} documents; duplicates: {(exact_X >= 0).sum():,} exact, {(near_X >= 0).sum():,} near")
    return {"exact": exact_X, "near": near_X}


def _tokenizer(config: Config, documents: Documents, train_X: np.ndarray, folder: Path, say: Say) -> Any:
    """The tokenizer in folder/tokenizer: the one that is named, or one trained on documents that stay."""
    target = folder / TOKENIZER
    if not target.exists():
        # Those whose hashes are low: as good as drawn, and the same whatever the number of parts.
        lot_X = documents.digests[:, 1].astype(np.float64) / 2**64
        chosen_X = train_X & (lot_X * max(1, train_X.sum()) < config.tokenizer.documents)
        texts = (text for _, text in documents.texts(0, len(documents.paths), chosen_X))
        tokenizers.make(config.tokenizer, texts, int(chosen_X.sum()), target, say)
    return tokenizer.load(target)


def _shards(
    config: Config,
    documents: Documents,
    alive_X: np.ndarray,
    split_X: np.ndarray,
    folder: Path,
    dtype: str,
    workers: int,
    say: Say,
) -> dict[str, list[Shard]]:
    """Shards of each split: what stays of parts in a row, of config.work.shard bytes of text or a little more."""
    groups = _groups(documents, alive_X, config.work.shard)
    splits = (shards.TRAIN, *config.split)
    clock, written = _Clock(say), {split: [] for split in splits}

    def work() -> Iterator[tuple[int, Any]]:
        for number, (first, last) in enumerate(groups):
            if _finished(folder, number) is None:
                start, end = documents.offsets[[first, last]].tolist()
                slices = (alive_X[start:end], split_X[start:end], documents.places[start:end])
                yield number, (documents.paths[first:last], documents.offsets[first : last + 1] - start, *slices)
            else:
                yield number, None

    for number in pool.ordered(writing, (str(folder), splits, dtype), work(), workers):
        done = _finished(folder, number)
        assert done is not None, f"shard {number} was just written"
        for split, shard in done.items():
            written[split].append(shard)
        clock.tick(lambda n=number: f"{n + 1:,} of {len(groups):,} shards written")
    return {split: made for split, made in written.items() if made}


def writing(folder: str, splits: Sequence[str], dtype: str) -> Callable[[Any], int]:
    """What a worker runs: it writes the shards of a group of parts, unless they are there (None); says its number."""
    target = Path(folder)
    encoder = tokenizer.load(target / TOKENIZER)

    def write(piece: tuple[int, Any]) -> int:
        number, group = piece
        if group is None:
            return number
        paths, offsets, alive_X, split_X, places = group

        def ready() -> Iterator[Ready]:
            for path, start in zip(paths, offsets.tolist(), strict=False):
                for one, text in enumerate(parts.read_texts(path), start):
                    if alive_X[one]:
                        file, line = places[one].tolist()
                        yield Ready(str(split_X[one]), file, line, text)

        made = shards.write(ready(), encoder, target, target / "work" / "shards", number, splits, dtype)
        text = json.dumps({split: asdict(shard) for split, shard in made.items()})
        atomic.write(target / "work" / "shards" / f"{number:05d}.json", text)
        return number

    return write


def _finished(folder: Path, number: int) -> dict[str, Shard] | None:
    """Shards number `number`, by split; None where they are not all there."""
    path = folder / "work" / "shards" / f"{number:05d}.json"
    if not path.exists():
        return None
    made = {split: Shard(**shard) for split, shard in json.loads(path.read_text()).items()}
    whole = all(
        (folder / one.file).is_file() and os.path.getsize(folder / one.file) == one.size for one in made.values()
    )
    return made if whole else None


def _groups(documents: Documents, alive_X: np.ndarray, size: int) -> list[tuple[int, int]]:
    """(first part, one behind the last) of each shard."""
    groups, first, held = [], 0, 0
    for part in range(len(documents.paths)):
        start, end = documents.offsets[part : part + 2].tolist()
        held += int(documents.sizes[start:end][alive_X[start:end]].sum())
        if held >= size:
            groups.append((first, part + 1))
            first, held = part + 1, 0
    if held:
        groups.append((first, len(documents.paths)))
    return groups


class _Clock:
    """Says a line of progress now and then."""

    def __init__(self, say: Say):
        self._say, self._last = say, time.monotonic()

    def tick(self, text: Callable[[], str]) -> None:
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._say(text())
