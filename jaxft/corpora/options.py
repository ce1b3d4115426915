"""The config of a corpus, checked before anything is read. As in jaxft.config every field is in the file.

`source` and each section of `rules` are calls: a name, and the keywords of the function that it stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxft.corpora import SOURCES
from jaxft.corpora.cleaning import Cleaner, rules_of
from jaxft.corpora.duplicates import Near
from jaxft.corpora.shards import check_shares
from jaxft.hf.trainers import TRAINERS
from jaxft.registry import UserError, bind, check_name, check_options


@dataclass(frozen=True)
class Text:
    column: str  # that holds the documents, in jsonl and parquet files and data sets
    on_bad: str  # "skip": records that are no text are counted and listed; "stop": they end the work

    def __post_init__(self) -> None:
        if self.on_bad not in ("skip", "stop"):
            raise UserError(f"text.on_bad={self.on_bad!r} must be one of: skip, stop")


@dataclass(frozen=True)
class Duplicates:
    exact: bool  # of equal texts the first stays
    near: bool  # and of texts that are nearly equal (Near)
    ngram: int
    bands: int
    rows: int
    threshold: float

    @property
    def signatures(self) -> Near | None:
        return Near(self.ngram, self.bands, self.rows, self.threshold) if self.near else None


@dataclass(frozen=True)
class Tokenizer:
    hf: str  # hub id or folder of the tokenizer; "" trains one on the documents that stay
    name: str  # of the one that is trained: its kind, a key of hf.trainers.TRAINERS
    vocab: int  # its entries, at most
    lowercase: bool
    positions: int  # tokens of the longest input of the model that it is for
    documents: int  # that it is trained on, about: those of the train split whose hashes are lowest

    def __post_init__(self) -> None:
        check_name(TRAINERS, self.name, "tokenizer.name")
        for name in ("vocab", "positions", "documents"):
            if getattr(self, name) < 1:
                raise UserError(f"tokenizer.{name}={getattr(self, name)} must be 1 or more")


@dataclass(frozen=True)
class Work:
    workers: int  # processes; 0: one for each core that this process may use
    chunk: int  # bytes of records that are cleaned, and kept, at a time
    shard: int  # bytes of text in a shard, about

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"work.workers={self.workers} must be 0 or more")
        for name in ("chunk", "shard"):
            if getattr(self, name) < 1:
                raise UserError(f"work.{name}={getattr(self, name)} must be 1 or more")


@dataclass(frozen=True)
class Config:
    source: dict
    text: Text
    order: tuple  # sections of `rules`, in the order in which they run; others do not
    rules: dict
    duplicates: Duplicates
    split: dict  # split -> share of the documents, by a hash of their text; the rest is train
    tokenizer: Tokenizer
    work: Work
    beam: str  # "": this machine; otherwise options of an Apache Beam pipeline, such as "--runner=DirectRunner"


def parse(raw: Mapping[str, Any]) -> Config:
    """Plain nested dicts as a Config. Raises UserError for what is missing, unknown or of another type."""
    check_options(Config, raw, "config")
    values: dict[str, Any] = dict(raw)
    for field in fields(Config):
        if field.type in (dict, Text, Duplicates, Tokenizer, Work) and not isinstance(raw[field.name], Mapping):
            raise UserError(f"config.{field.name}={raw[field.name]!r} must be a section (a dict)")
    for name, kind in (("text", Text), ("duplicates", Duplicates), ("tokenizer", Tokenizer), ("work", Work)):
        check_options(kind, raw[name], name)
        values[name] = kind(**raw[name])
    config = Config(**{**values, "order": tuple(raw["order"])})
    if set(config.split) != {"validation", "test"}:
        raise UserError(f"split: {', '.join(config.split)} must be validation and test, each with its share")
    check_shares(config.split)
    rules_of(tuple(config.rules), config.rules)  # those that do not run, too
    rules_of(config.order, config.rules)
    if "name" not in config.source:
        raise UserError("source.name is missing; source is a call: dict(name=..., options)")
    bind(SOURCES, config.source, "source")
    if config.beam and config.source["name"] != "files":
        raise UserError(f"beam={config.beam!r} reads files; source.name={config.source['name']!r} is read here alone")
    assert config.duplicates.signatures or not config.duplicates.near
    return config


def source_of(config: Config) -> Any:
    """The source of the documents. Raises UserError where there is none."""
    return bind(SOURCES, config.source, "source")()


def cleaner_of(config: Config, names: list[str], formats: list[str]) -> Cleaner:
    """The rules of the config, for records of these files."""
    return Cleaner(
        order=config.order,
        rules=config.rules,
        near=config.duplicates.signatures,
        column=config.text.column,
        names=names,
        formats=formats,
    )
