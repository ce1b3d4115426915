"""The same functions as Apache Beam pipelines: a corpus past one machine.

The first pipeline reads, cleans and drops duplicates, and writes the texts that stay; here, on one machine, a
tokenizer is trained on a sample of them; the second pipeline writes the shards. The documents, their splits and their
tokens are those of local.py; in which shard a document stands, and which samples the report shows, is not. Who works
reads the sources and writes the folder by their paths: both lie where all workers have them.
"""

import glob
import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports] - an extra
import numpy as np

from jaxft.corpora import ending, pipelines, report, shards, sources, tokenizers
from jaxft.corpora.options import Config, cleaner_of, parse
from jaxft.corpora.tally import SAMPLES, Tally, shown
from jaxft.data.prepared import TOKENIZER, Index, Shard
from jaxft.hf import tokenizer
from jaxft.registry import UserError

Say = Callable[[str], None]
Place = tuple[int, int]  # file, line: the order of the corpus


def prepare(raw: dict[str, Any], config: Config, source: Any, folder: Path, say: Say) -> None:
    """Both pipelines and the tokenizer between them; what a killed one left is done again."""
    started = time.perf_counter()
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    say(f"reading {len(source.names):,} files; Beam: {config.beam}")
    with pipelines.pipeline(config.beam) as pipeline:
        _clean(pipeline, raw, config, source, work)
    tally = _tally(work)
    if config.text.on_bad == "stop":
        ending.refuse_bad(tally)
    sizes = [json.loads(line) for line in _lines(work, "sizes")]
    if not sizes:
        raise UserError(f"no document is left of {tally.records:,} records; {ending.why(tally)}")
    _tokenizer(config, folder, say)
    encoder = tokenizer.load(folder / TOKENIZER)
    count = max(1, sum(sizes) // config.work.shard)
    dtype = shards.dtype_of(encoder.vocab_size)
    with pipelines.pipeline(config.beam) as pipeline:
        _write(pipeline, config, folder, count, dtype)
    made = sorted((json.loads(line) for line in _lines(work, "made")), key=lambda one: one["shard"]["file"])
    splits = (shards.TRAIN, *config.split)
    written = {split: [Shard(**one["shard"]) for one in made if one["split"] == split] for split in splits}
    index = Index({split: found for split, found in written.items() if found}, source.names, dtype)
    _finish(raw, folder, index, tally, time.perf_counter() - started, say)


def _clean(pipeline: Any, raw: dict[str, Any], config: Config, source: Any, work: Path) -> None:
    near = config.duplicates.signatures
    cleaned = (
        pipeline
        | "files" >> beam.Create(range(len(source.names)))
        | "read" >> beam.FlatMap(_read, source, config)
        | "spread" >> beam.Reshuffle()
        | "clean" >> beam.ParDo(_Clean(raw, source)).with_outputs("gone", "tally", main="kept")
    )
    texts = cleaned.kept | "texts" >> beam.Map(lambda kept: (kept[0], kept[1:3]))
    alike = cleaned.kept | "digests" >> beam.Map(lambda kept: (kept[2], (kept[0], kept[3])))
    groups = alike | "equal" >> beam.GroupByKey()
    if config.duplicates.exact:
        exact = groups | "exact" >> beam.FlatMap(lambda group: _later(group[1]))
        first = groups | "first" >> beam.Map(lambda group: min(group[1], key=lambda one: one[0]))
    else:
        exact = pipeline | "no exact" >> beam.Create([])
        first = cleaned.kept | "all" >> beam.Map(lambda kept: (kept[0], kept[3]))
    if near:
        following = (
            first
            | "buckets" >> beam.FlatMap(_buckets, near)
            | "meet" >> beam.GroupByKey()
            | "agree" >> beam.FlatMap(lambda bucket, near: _followers(bucket[1], near), near)
            | "leader" >> beam.CombinePerKey(min)
        )
    else:
        following = pipeline | "no near" >> beam.Create([])
    joined = {"text": texts, "exact": exact, "near": following} | "join" >> beam.CoGroupByKey()
    ended = joined | "stay" >> beam.ParDo(_Stay(source.names)).with_outputs("gone", "lost", "size", main="stay")
    gone = (cleaned.gone, ended.gone) | "what went" >> beam.Flatten()
    _to_lines(gone, "gone", work)
    _to_lines(cleaned.tally, "tally", work)
    _to_lines(ended.lost | "sum" >> beam.CombinePerKey(sum) | "as json" >> beam.Map(json.dumps), "lost", work)
    _to_lines(ended.size | beam.CombineGlobally(sum) | beam.Filter(bool) | beam.Map(json.dumps), "sizes", work)
    _to_lines(ended.stay, "texts", work, ".jsonl.gz")


def _to_lines(lines: Any, name: str, work: Path, ending: str = ".jsonl") -> None:
    _ = lines | f"write {name}" >> beam.io.WriteToText(str(work / name), file_name_suffix=ending)


def _read(number: int, source: Any, config: Config) -> Iterator[list[sources.Record]]:
    """Chunks of the records of a file."""
    return sources.chunks(source.records_of(number, config.text.column), config.work.chunk)


class _Clean(beam.DoFn):
    """Chunks to (place, text, digest, signature); beside them lines about what went, and tallies.

    The files are those of `source`, which found them once: who looked again might find others, and number them so.
    """

    def __init__(self, raw: dict[str, Any], source: Any):
        self._raw, self._names = raw, source.names
        self._formats = [source.format(number) for number in range(len(source.names))]

    def setup(self) -> None:
        self._cleaner = cleaner_of(parse(self._raw), self._names, self._formats)

    def process(self, records: list[sources.Record]) -> Iterator[Any]:
        cleaned = self._cleaner.clean(records)
        for one in cleaned.kept:
            yield (one.file, one.line), one.text, one.digest, one.signature
        for file, line, rule, reason in cleaned.gone:
            yield beam.pvalue.TaggedOutput("gone", _line(self._cleaner.where(file, line), rule, reason))
        first = [records[0].file, records[0].line]
        yield beam.pvalue.TaggedOutput("tally", json.dumps([first, cleaned.tally.to_json()], ensure_ascii=False))


def _line(where: str, rule: str, reason: str) -> str:
    return json.dumps({"where": where, "rule": rule, "reason": reason}, ensure_ascii=False)


def _later(group: Iterable[tuple[Place, Any]]) -> list[tuple[Place, Place]]:
    """(place, that of the first) of all documents of a group but the first."""
    places = sorted(place for place, _ in group)
    return [(place, places[0]) for place in places[1:]]


def _buckets(one: tuple[Place, np.ndarray], near: Any) -> Iterator[tuple[tuple[int, int], tuple[Place, np.ndarray]]]:
    for band, bucket in enumerate(near.buckets(one[1][None])):
        yield (band, int(bucket.view(np.int64)[0])), one  # Beam counts in 64 bits with a sign


def _followers(bucket: Iterable[tuple[Place, np.ndarray]], near: Any) -> Iterator[tuple[Place, Place]]:
    """(place of a document that goes, of the one it agrees with)."""
    members = sorted(bucket, key=lambda one: one[0])
    for gone, leader in near.followers(np.stack([signature for _, signature in members])):
        yield members[gone][0], members[leader][0]


class _Stay(beam.DoFn):
    """Documents, and because of whom they go if they do, to lines with those that stay; beside them lines about what
    went, (kind, bytes) of each, and the bytes of those that stay."""

    def __init__(self, names: list[str]):
        self._names = names

    def process(self, joined: tuple[Place, dict[str, Any]]) -> Iterator[Any]:
        (file, line), found = joined
        ((text, digest),) = found["text"]
        for kind in ("exact", "near"):
            for other, number in found[kind]:
                what = _line(f"{self._names[file]}:{line}", f"{kind} duplicate", f"of {self._names[other]}:{number}")
                yield beam.pvalue.TaggedOutput("gone", what)
                yield beam.pvalue.TaggedOutput("lost", (kind, len(text.encode())))
                return
        yield beam.pvalue.TaggedOutput("size", len(text.encode()))
        yield json.dumps({"file": file, "line": line, "text": text, "digest": digest.hex()}, ensure_ascii=False)


def _lines(work: Path, name: str) -> Iterator[str]:
    for path in sorted(glob.glob(f"{glob.escape(str(work / name))}-*")):
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
            yield from file


def _tally(work: Path) -> Tally:
    total = Tally()
    for _, one in sorted((json.loads(line) for line in _lines(work, "tally")), key=lambda one: one[0]):
        total.add(Tally.from_json(one))
    return total


def _numbers(digest: str) -> np.ndarray:
    """A digest as uint64 [1, 2]."""
    return np.frombuffer(bytes.fromhex(digest), ">u8").astype(np.uint64).reshape(1, 2)


def _split(digest: str, config: Config) -> str:
    return str(shards.splits_of(_numbers(digest), config.split)[0])


def _tokenizer(config: Config, folder: Path, say: Say) -> None:
    """As local.py makes it: from the documents of the train split whose hashes are low, in the corpus's order."""
    if (folder / TOKENIZER).exists():
        return
    rows = [json.loads(line) for line in _lines(folder / "work", "texts")] if not config.tokenizer.hf else []
    rows = [row for row in rows if _split(row["digest"], config) == shards.TRAIN]
    lot = {row["digest"]: float(_numbers(row["digest"])[0, 1].astype(np.float64)) / 2**64 for row in rows}
    chosen = [row for row in rows if lot[row["digest"]] * max(1, len(rows)) < config.tokenizer.documents]
    chosen.sort(key=lambda row: (row["file"], row["line"]))
    tokenizers.make(config.tokenizer, (row["text"] for row in chosen), len(chosen), folder / TOKENIZER, say)


def _write(pipeline: Any, config: Config, folder: Path, count: int, dtype: str) -> None:
    """The shards, of each split at most `count`."""
    keyed = (
        pipeline
        | "texts" >> beam.io.ReadFromText(str(folder / "work" / "texts*.jsonl.gz"))
        | "key" >> beam.Map(_keyed, config, count)
        | "shards" >> beam.GroupByKey()
        | "write" >> beam.ParDo(_Write(folder, dtype))
    )
    _to_lines(keyed, "made", folder / "work")


def _keyed(line: str, config: Config, count: int) -> tuple[tuple[str, int], str]:
    digest = json.loads(line)["digest"]
    return (_split(digest, config), int(_numbers(digest)[0, 1]) % count), line


class _Write(beam.DoFn):
    """Documents of one shard, in the corpus's order, to an array_record file."""

    def __init__(self, folder: Path, dtype: str):
        self._folder, self._dtype = folder, dtype

    def setup(self) -> None:
        self._encoder = tokenizer.load(self._folder / TOKENIZER)

    def process(self, group: tuple[tuple[str, int], Iterable[str]]) -> Iterator[str]:
        (split, number), lines = group
        rows = sorted((json.loads(line) for line in lines), key=lambda row: (row["file"], row["line"]))
        ready = (shards.Ready(split, row["file"], row["line"], row["text"]) for row in rows)
        made = shards.write(ready, self._encoder, self._folder, self._folder / "work", number, [split], self._dtype)
        yield json.dumps({"split": split, "shard": asdict(made[split])})


def _finish(raw: dict[str, Any], folder: Path, index: Index, tally: Tally, seconds: float, say: Say) -> None:
    lost = dict(json.loads(line) for line in _lines(folder / "work", "lost"))
    duplicates = {kind: {"count": 0, "bytes": lost.get(kind, 0), "samples": []} for kind in ("exact", "near")}

    def lines() -> Iterator[str]:
        for line in _lines(folder / "work", "gone"):
            one = json.loads(line)
            kind = one["rule"].removesuffix(" duplicate")
            if kind in duplicates:
                duplicates[kind]["count"] += 1
                if len(duplicates[kind]["samples"]) < SAMPLES:
                    kept = shown(one["reason"].removeprefix("of "))
                    pair = {"removed": one["where"], "kept": kept, "removed_text": "", "kept_text": ""}
                    duplicates[kind]["samples"].append(pair)
            yield line

    ending.write_lines(folder / ending.REMOVED, lines())
    results = {
        "tally": tally.to_json(),
        "duplicates": duplicates,
        "splits": report.totals(index),
        "seconds": seconds,
        "files": len(index.sources),
    }
    report.write(folder, config=raw, results=results, say=say)
    ending.write_index(folder, index)
