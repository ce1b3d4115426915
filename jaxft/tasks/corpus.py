"""What tasks share that learn from running text: a column of documents, a loss over the vocabulary, its scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxft.metrics.language import LanguageMeter
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, Splits, cell, require_columns, settle_metric

LONGEST = 2**31 - 1  # bytes of a document


@dataclass(frozen=True, kw_only=True)
class CorpusTask(Classless):
    """text: the column that holds the documents. metric: the score that picks the best checkpoint."""

    text: str
    metric: str

    reads: ClassVar[str] = "corpus"
    columns: ClassVar[dict[str, str]] = {"text": "text"}
    flags: ClassVar[dict[str, str]] = {"text": "text"}
    generates: ClassVar[bool] = False
    outputs: ClassVar[int] = 0  # logits are over the vocabulary
    head: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        settle_metric(self)
        if not self.text:
            raise UserError("task.text='' must name the column that holds the text")

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns. Documents that are tokens already (data/prepared.py) have no column of text."""
        texts = {name: split for name, split in splits.items() if not (len(split.rows) and is_tokens(split.rows[0]))}
        require_columns(texts, [("text", self.text)], option)

    def example(self, row: Row, labelled: bool = True) -> Example:
        """A document; its label is its length in bytes of UTF-8. Raises BadRow for what is no text."""
        if is_tokens(row):
            return Example(row["ids"], None, row["bytes"])
        text = cell(row, self.text)
        if not isinstance(text, str):
            raise BadRow(f"{self.text!r} is {'empty' if text is None else f'a {type(text).__name__}, not text'}")
        if not text.strip():
            raise BadRow(f"{self.text!r} is empty")
        size = len(text.encode())
        if size > LONGEST:
            raise BadRow(f"{self.text!r} has {size:,} bytes; a document may have {LONGEST:,}")
        return Example(text, None, size)

    def seen(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to score: how much text there was. The logits stay where they are."""
        return {"bytes": batch["bytes"], "example": batch["example"]}

    def meter(self) -> LanguageMeter:
        return LanguageMeter(self.metrics)


def is_tokens(row: Row) -> bool:
    """Whether a row has token ids in place of a text."""
    return isinstance(row.get("ids"), np.ndarray)
