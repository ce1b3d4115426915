"""Scores of replaced-token detection: a confusion of two classes, and the perplexity of who replaced them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.metrics import confusion, table
from jaxft.metrics.language import perplexity
from jaxft.metrics.meters import Meter


class DetectionMeter(Meter):
    """`loss` is of a token; `perplexity` is the generator's of the hidden tokens; the others are of all tokens."""

    def __init__(self, shares: Mapping[str, float]):
        """`shares`: of which sums' means the loss is made, and of how much of each."""
        super().__init__()
        self.shares = shares
        self.counts_CC = np.zeros((2, 2))  # truth by answer: original, replaced
        self.parts: dict[str, np.ndarray] = {}

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        self.weight += float(sums["detection_loss"][1])
        self.examples += int((seen["example"] >= 0).sum())
        for name in ("detection_loss", "generator_loss", "generator_accuracy"):
            self.parts[name] = self.parts.get(name, 0.0) + np.asarray(sums[name], np.float64)
        (said, tokens), (found, replaced) = sums["marked"], sums["recall"]
        self.counts_CC += np.array([[tokens - said - replaced + found, said - found], [replaced - found, found]])

    @property
    def loss(self) -> float:
        return sum(share * self.parts[name][0] / max(self.parts[name][1], 1) for name, share in self.shares.items())

    def result(self) -> dict[str, float]:
        if not self.weight:
            raise ValueError("no scores of nothing: no token was added")
        return {
            "loss": self.loss,
            "f1": confusion.f1(self.counts_CC),
            "accuracy": confusion.accuracy(self.counts_CC),
            "perplexity": perplexity(*self.parts["generator_loss"]),
        }

    def report(self) -> dict[str, Any]:
        """With precision and recall of the replaced tokens, the share of these, and the parts of the loss."""
        (_, wrong), (missed, found) = self.counts_CC
        parts = {name: _ratio(*part) for name, part in self.parts.items()}
        scores = {"precision": _ratio(found, found + wrong), "recall": _ratio(found, found + missed)}
        replaced = _ratio(missed + found, self.weight)
        return {"tokens": int(self.weight), "replaced": replaced, **self.result(), **scores, **parts}

    def table(self) -> str:
        return table.scores(self.report())


def _ratio(total: float, weight: float) -> float:
    return float(total / weight) if weight else math.nan
