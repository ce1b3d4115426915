"""Sequence to sequence: a text made of another one. Translation, summaries, whatever has a source and a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jaxft.metrics import texts
from jaxft.metrics.written import Seq2SeqMeter
from jaxft.registry import UserError
from jaxft.tasks import Example
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, Splits, require_columns, settle_metric, text_at

ALL = -1  # as a number of rows


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(Classless):
    """source, target: columns; "translation.de" is the field de of a column translation. prefix: before each source.

    metric: the score that picks the best checkpoint; "" = loss. smoothing: share of the target spread over all tokens.
    target_length: tokens of a row of targets, as input.length is of sources. too_long: "cut" or "drop" what has more.
    write: how many rows of the validation split texts are written for in each evaluation (0: none, -1: all), and
    write_last: how many of the split that is scored at the end. beams: texts that a search carries on at once (1: the
    likeliest token is taken). max_new_tokens: of a text. tokenize: sacrebleu's tokenizer of words ("13a", "zh",
    "ja-mecab", "char", ...).
    """

    source: str
    target: str
    prefix: str
    metric: str
    smoothing: float
    target_length: int
    too_long: str
    write: int
    write_last: int
    beams: int
    max_new_tokens: int
    tokenize: str

    reads: ClassVar[str] = "seq2seq"
    head: ClassVar[str] = "seq2seq_lm"
    read: ClassVar[float] = 1.0  # share of a target's tokens whose vectors the head is given
    outputs: ClassVar[int] = 0  # logits are over the vocabulary
    columns: ClassVar[dict[str, str]] = {"source": "source", "target": "target"}
    generates: ClassVar[bool] = True
    flags: ClassVar[dict[str, str]] = {"text": "source", "label": "target"}
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy", *texts.SCORES)

    def __post_init__(self) -> None:
        settle_metric(self)
        for name in ("source", "target"):
            if not getattr(self, name):
                raise UserError(f"task.{name}='' must name a column")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"task.smoothing={self.smoothing} must be at least 0 and below 1; 0.1 is common")
        for name, least in (("write", ALL), ("write_last", ALL), ("target_length", 1), ("beams", 1)):
            if getattr(self, name) < least:
                raise UserError(f"task.{name}={getattr(self, name)} must be at least {least}")
        if self.max_new_tokens < 1:
            raise UserError(f"task.max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.too_long not in ("cut", "drop"):
            raise UserError(f'task.too_long={self.too_long!r} must be "cut" or "drop"')
        if self.metric in texts.SCORES and not self.write:
            raise UserError(f"task.metric={self.metric!r} is a score of texts: set task.write above 0, such as 200")
        if self.write or self.write_last:
            texts.require(self.tokenize, f"task.write={self.write}, task.write_last={self.write_last}")

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns. Of a field in a column the column must be there."""
        wanted = [("source", self.source)] + [("target", self.target)] * labelled
        require_columns(splits, [(which, column.partition(".")[0]) for which, column in wanted], option)

    def example(self, row: Row, labelled: bool = True) -> Example:
        """Source with its prefix, and target, None where it is not asked for. Raises BadRow for what is no text."""
        source = f"{self.prefix}{text_at(row, self.source)}"
        return Example(source, text_at(row, self.target) if labelled else None, None)

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy of the target's tokens, and how many were the likeliest."""
        return logits.cross_entropy(batch["label"], batch["weight"], smoothing=self.smoothing)

    def seen(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to score: which pairs there were, and the loss as it is without smoothing."""
        plain = logits.cross_entropy(batch["label"], batch["weight"])["loss"][0]
        return {"example": batch["example"], "nll": plain}

    def meter(self) -> Seq2SeqMeter:
        return Seq2SeqMeter(self.tokenize)
