"""Meters of words that have tags: accuracy of words, and of tags of entities their precision, recall and F1."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.metrics import confusion, entities, multilabel, table
from jaxft.metrics.meters import Meter


class TagMeter(Meter):
    """One of C classes a word: keeps the confusion matrix. Words that no token stands for are told, not scored."""

    def __init__(self, classes: tuple[str, ...]):
        super().__init__()
        self.classes = classes
        self.counts_CC = np.zeros((len(classes), len(classes)), np.int64)
        self.lost = 0

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        """`seen`: predicted, label, segment [B, L]; example, lost [B, S]."""
        word_BL = seen["label"] >= 0
        row_W, _ = np.nonzero(word_BL)
        sentence_W = row_W * (int(seen["segment"].max(initial=0)) + 1) + seen["segment"][word_BL]
        self.add(seen["predicted"][word_BL], seen["label"][word_BL], sentence_W)
        self.lost += int(seen["lost"].sum())
        self.add_loss(*(float(x) for x in sums["loss"]), examples=int((seen["example"] >= 0).sum()))

    def add(self, predicted_W: np.ndarray, label_W: np.ndarray, sentence_W: np.ndarray) -> None:
        """Classes [W] of words in order; words of one sentence follow each other and have the same number."""
        size = len(self.classes)
        cells_W = label_W.astype(np.int64) * size + predicted_W
        self.counts_CC += np.bincount(cells_W, minlength=size * size).reshape(size, size)

    def result(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "accuracy": confusion.accuracy(self.counts_CC),
            "balanced_accuracy": confusion.balanced_accuracy(self.counts_CC),
            "macro_f1": confusion.macro_f1(self.counts_CC),
            "weighted_f1": confusion.weighted_f1(self.counts_CC),
        }

    def numbers(self) -> dict[str, int]:
        return {"examples": self.examples, "words": int(self.counts_CC.sum()), "words_lost": self.lost}

    def report(self) -> dict[str, Any]:
        averages = {name: confusion.averages(self.counts_CC, name) for name in ("macro", "weighted")}
        classes = confusion.per_class(self.counts_CC, self.classes)
        return {
            **self.numbers(),
            **self.result(),
            **averages,
            "classes": classes,
            "confusion": self.counts_CC.tolist(),
        }

    def table(self) -> str:
        scores = table.classification(self.report(), ("macro", "weighted"), ("accuracy", "words", "words_lost"))
        return f"{scores}\n\n{table.confusion(self.counts_CC, self.classes)}"


class EntityMeter(TagMeter):
    """Tags of entities: these are right where their words and their type are."""

    def __init__(self, classes: tuple[str, ...]):
        super().__init__(classes)
        self.tags = entities.Tags(classes)
        self.counts_K22, self.strict_K22 = (np.zeros((len(self.tags.kinds), 2, 2), np.int64) for _ in range(2))

    def add(self, predicted_W: np.ndarray, label_W: np.ndarray, sentence_W: np.ndarray) -> None:
        super().add(predicted_W, label_W, sentence_W)
        first_W = np.diff(sentence_W, prepend=-1) != 0
        for counts_K22, read in (
            (self.counts_K22, self.tags.entities),
            (self.strict_K22, self.tags.strict_entities),
        ):
            counts_K22 += entities.count(read(label_W, first_W), read(predicted_W, first_W), len(self.tags.kinds))

    def result(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "accuracy": confusion.accuracy(self.counts_CC),
            "precision": entities.precision(self.counts_K22),
            "recall": entities.recall(self.counts_K22),
            "f1": entities.f1(self.counts_K22),
            "strict_f1": entities.f1(self.strict_K22),
        }

    def report(self) -> dict[str, Any]:
        averages = {name: multilabel.averages(self.counts_K22, name) for name in ("micro", "macro", "weighted")}
        kinds = tuple(kind or "entity" for kind in self.tags.kinds)
        return {
            **self.numbers(),
            **self.result(),
            **averages,
            "classes": multilabel.per_class(self.counts_K22, kinds),
        }

    def table(self) -> str:
        scores = ("strict_f1", "accuracy", "words", "words_lost")
        return table.classification(self.report(), ("micro", "macro", "weighted"), scores)
