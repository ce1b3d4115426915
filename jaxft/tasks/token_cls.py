"""Token classification: one of C tags for every word (entities, parts of speech)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.metrics import entities
from jaxft.metrics.tags import EntityMeter, TagMeter
from jaxft.registry import UserError
from jaxft.tasks import Example, labels, words
from jaxft.tasks.one_class import Classes
from jaxft.tasks.text import Row, Splits, labels_in, require_columns, settle_metric


@dataclass(frozen=True, kw_only=True)
class TokenCls(Classes):
    """text: the column of words (lists), or of texts; label: of their tags (lists), or of spans in the texts.

    metric: the score that picks the best checkpoint; "" = f1 of tags that mark entities (B-LOC, I-LOC, O), else
    accuracy. Further the options of classes (one_class.py).
    A word's tag is that of its first token; further tokens of the word have none.
    """

    text: str

    reads: ClassVar[str] = "words"
    head: ClassVar[str] = "token"
    read: ClassVar[float] = 1.0  # share of a row's tokens whose vectors the head is given
    columns: ClassVar[dict[str, str]] = {"text": "tokens", "label": "tags"}  # where nothing else is said

    def __post_init__(self) -> None:
        self.check_options()
        if self.classes or self.metric:
            settle_metric(self)
        if not self.text:
            raise UserError("task.text='' must name the column that holds the words")

    @functools.cached_property
    def entities(self) -> bool:
        return entities.are_entities(self.classes)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What may be chosen as `metric`, of which the first is the task's own; all of them while no class is known."""
        of_entities = ("f1", "strict_f1", "precision", "recall", "accuracy", "loss")
        of_words = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "loss")
        if not self.classes:
            return tuple(dict.fromkeys(of_words + of_entities))
        return of_entities if self.entities else of_words

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns."""
        require_columns(splits, [("text", self.text)] + [("label", self.label)] * labelled, option)

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """With its classes: those of the config, else of the source, else of the train split.

        Raises UserError for a missing column, an empty split and fewer than two classes. A tag that is none of the
        classes makes a bad row: of another split, and of the train split one that is no tag of entities where most are.
        """
        self.check_columns(splits)
        names = labels.Names(self.classes or label_names.get(self.label, ()))

        def read(row: Row) -> list[str]:
            return [names.name(tag) for tag in words.tagged(row, self.text, self.label)[1]]

        found = labels_in("train", splits["train"], read)
        if len(found) < 2:
            raise UserError(f"task.label={self.label!r}: the train split has a single tag; two are the least")
        return dataclasses.replace(self, classes=names.names or _completed(entities.proper(labels.in_order(found))))

    def example(self, row: Row, labelled: bool = True) -> Example:
        """The words, and of each the class; where it is not labelled its number, which tells what is predicted of it.

        Raises BadRow for words or tags that cannot be used.
        """
        if not labelled:
            found = words.words_of(row, self.text)
            return Example(found, None, list(range(len(found))))
        found, tags = words.tagged(row, self.text, self.label)
        return Example(found, None, [self._names.id(tag) for tag in tags])

    def readout(self, logits_BLC: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return logits_BLC

    def seen(self, logits_BLC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to score: the likeliest class of every token, and which of them stand for words."""
        told = {name: batch[name] for name in ("label", "segment", "example", "lost")}
        return told | {"predicted": jnp.argmax(logits_BLC, axis=-1).astype(jnp.int32)}

    def meter(self) -> TagMeter:
        return (EntityMeter if self.entities else TagMeter)(self.classes)

    def predictions(self, logits: Sequence[np.ndarray], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """logits [words, C] of each row, NaN of a word without a token -> [{tags, of a text words, entities}].

        The tag of a word without a token is None. Entities are {label, start, end, text}: numbers of words, of a text
        those of characters; `end` is past the last one.
        """
        return [self._prediction(logits_WC, row[self.text]) for logits_WC, row in zip(logits, rows, strict=True)]

    def _prediction(self, logits_WC: np.ndarray, given: str | list[str]) -> dict[str, Any]:
        known_K = np.flatnonzero(~np.isnan(logits_WC).any(-1))
        class_K = logits_WC[known_K].argmax(-1)
        tags: list[str | None] = [None] * len(logits_WC)
        for place, number in zip(known_K.tolist(), class_K.tolist(), strict=True):
            tags[place] = self.classes[number]
        at = words.split(given) if isinstance(given, str) else [(i, i + 1) for i in range(len(given))]
        said = {"words": [given[start:end] for start, end in at]} if isinstance(given, str) else {}
        if not self.entities:
            return said | {"tags": tags}
        of = entities.Tags(self.classes)
        found = of.entities(class_K, np.diff(known_K, prepend=-2) != 1)
        spans = [
            (at[int(known_K[begin])][0], at[int(known_K[end - 1])][1], of.kinds[kind])
            for begin, end, kind in zip(*found, strict=True)
        ]
        return said | {"tags": tags, "entities": [_entity(given, *span) for span in spans]}

    def hf_config(self) -> dict[str, Any]:
        return labels.to_hf(self.classes)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, text: str, label: str, smoothing: float = 0.0) -> Self:
        return cls(text=text, label=label, metric="", smoothing=smoothing, classes=labels.from_hf(config))


def _entity(given: str | list[str], start: int, end: int, kind: str) -> dict[str, Any]:
    text = given[start:end]
    return {"label": kind, "start": start, "end": end, "text": text if isinstance(text, str) else " ".join(text)}


def _completed(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Of tags of entities all that there can be: a type may never have been of two words, and then it has no I."""
    if not entities.are_entities(classes):
        return classes
    parted = [name.partition("-") for name in classes if name != "O"]
    prefixes, kinds = {prefix for prefix, _, _ in parted} | {"B", "I"}, {(dash, kind) for _, dash, kind in parted}
    return labels.in_order({"O", *(f"{prefix}{dash}{kind}" for prefix in prefixes for dash, kind in kinds)})
