"""Multiple choice: which of several answers to a question, or endings of a text, is the right one."""

import functools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.metrics.meters import ShareMeter, softmax
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, Splits, cell, require_columns, settle_metric, text_of


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Classless):
    """text: the column of what the choices are about, a question or a context. stem: of how all choices begin, or "".

    choices: the column of a list of texts, or several columns of one each, parted by commas. label: that of the right
    one: its text, its letter (A, B, ...) or its number from 0. metric: the score that picks the best checkpoint.

    A choice is read as the second text of a pair, by a network that gives each one logit; the softmax is over the
    choices of a row, of which each may have as many as it likes (Radford et al. 2018, section 3.3).
    """

    text: str
    stem: str
    choices: str
    label: str
    metric: str  # "" = accuracy

    reads: ClassVar[str] = "groups"
    head: ClassVar[str] = "multiple_choice"
    read: ClassVar[float] = 0.0  # share of a row's tokens whose vectors the head is given: a few, not worth counting
    outputs: ClassVar[int] = 1
    blank: ClassVar[object] = 0  # a label like those of the data (data/blanks.py)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss")
    columns: ClassVar[dict[str, str]] = {"text": "question", "stem": "", "choices": "choices", "label": "label"}

    def __post_init__(self) -> None:
        settle_metric(self)
        if not self.text:
            raise UserError("task.text='' must name the column of the question")
        if not all(self._columns):
            raise UserError(f"task.choices={self.choices!r} must name a column of lists, or columns parted by commas")

    @functools.cached_property
    def _columns(self) -> list[str]:
        return [name.strip() for name in self.choices.split(",")]

    @property
    def compared(self) -> int:
        """Choices of a row; lists are taken to have four."""
        return len(self._columns) if len(self._columns) > 1 else 4

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns."""
        wanted = [("text", self.text), *(("choices", name) for name in self._columns)]
        wanted += [("stem", self.stem)] * bool(self.stem) + [("label", self.label)] * labelled
        require_columns(splits, wanted, option)

    def example(self, row: Row, labelled: bool = True) -> list[Example]:
        """A pair of texts for each choice, whose label is 1 for the right one and 0 else. Raises BadRow."""
        text, choices = self._text(row, self.text), self._choices(row)
        stem = self._text(row, self.stem) + " " if self.stem else ""
        right = self._right(row, choices) if labelled else -1
        return [Example(text, stem + choice, int(i == right)) for i, choice in enumerate(choices)]

    def _choices(self, row: Row) -> list[str]:
        if len(self._columns) > 1:
            return [self._text(row, name) for name in self._columns]
        choices = cell(row, self.choices)
        if not isinstance(choices, list):
            raise BadRow(f"{self.choices!r} is a {type(choices).__name__}; it must be a list of texts")
        if len(choices) < 2:
            raise BadRow(f"{self.choices!r} has {len(choices)} texts; two are the least to choose from")
        return [text_of(choice, f"choice {i} of {self.choices!r}") for i, choice in enumerate(choices)]

    def _text(self, row: Row, column: str) -> str:
        return text_of(cell(row, column), repr(column))

    def _right(self, row: Row, choices: Sequence[str]) -> int:
        value = cell(row, self.label)
        number = value
        if isinstance(value, str) and len(value) == 1 and value in string.ascii_uppercase:
            number = string.ascii_uppercase.index(value)
        elif isinstance(value, str) and value.isdecimal():
            number = int(value)
        counts = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(choices)
        meant = {i for i, choice in enumerate(choices) if choice == value} | ({number} if counts else set())
        if len(meant) > 1:
            raise BadRow(f"{self.label!r} is {value!r}, which may mean more than one of the choices {choices}")
        if not meant:
            raise BadRow(f"{self.label!r} is {value!r}, which is none of the {len(choices)} choices (counted from 0)")
        return meant.pop()

    def loss(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy over the choices of each question, and how many are the likeliest."""
        right_BS = (batch["label"] == 1) & (batch["weight"] > 0)
        group_BS = batch["group"]
        logits_BS = jnp.where(group_BS >= 0, logits_BSC[..., 0].astype(jnp.float32), 0)
        together_BSS = group_BS[:, :, None] == group_BS[:, None, :]  # empty slots with each other, which nobody reads
        others_BSS = jnp.where(together_BSS, logits_BS[:, None, :], -jnp.inf)
        loss_BS = jax.nn.logsumexp(others_BSS, axis=-1) - logits_BS
        hit_BS = jnp.argmax(others_BSS, axis=-1) == jnp.arange(logits_BS.shape[1])[None, :]
        weight = right_BS.astype(jnp.float32).sum()
        return {
            "loss": (jnp.where(right_BS, loss_BS, 0).sum(), weight),
            "accuracy": ((right_BS & hit_BS).astype(jnp.float32).sum(), weight),
        }

    def seen(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Nothing: the sums of the loss say all."""
        return {}

    def readout(self, logits_BSC: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return logits_BSC

    def meter(self) -> ShareMeter:
        return ShareMeter(self.metrics, "questions")

    def predictions(self, logits: Sequence[np.ndarray], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """logits [choices, 1] of each row -> [{choice (counted from 0), text, probabilities}]."""
        found = []
        for logits_S1, row in zip(logits, rows, strict=True):
            best, probabilities = int(logits_S1[:, 0].argmax()), softmax(logits_S1[:, 0])
            text = self._choices(row)[best]
            found.append({"choice": best, "text": text, "probabilities": probabilities.tolist()})
        return found

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, text: str, stem: str, choices: str, label: str) -> Self:
        return cls(text=text, stem=stem, choices=choices, label=label, metric="")
