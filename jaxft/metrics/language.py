"""Scores of language models: all are made of the summed loss, which is in nats."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.metrics import table
from jaxft.metrics.meters import Meter


def perplexity(loss_sum: float, tokens: float) -> float:
    """exp of the mean loss of a token. NaN of no token."""
    if not tokens:
        return math.nan
    return math.exp(loss_sum / tokens) if loss_sum / tokens < 700 else math.inf


def bits_per_byte(loss_sum: float, size: float) -> float:
    """The summed loss in bits for each byte of text, which does not depend on the tokenizer. NaN of no text."""
    return loss_sum / math.log(2) / size if size else math.nan


class LanguageMeter(Meter):
    """`metrics`: which of its scores are told. Each token counts once; `examples` are chats, rows of a corpus."""

    def __init__(self, metrics: tuple[str, ...]):
        super().__init__()
        self.metrics = metrics
        self.hits = self.bytes = 0.0

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        self.add_loss(*(float(x) for x in sums["loss"]), examples=int((seen["example"] >= 0).sum()))
        self.hits += float(sums["accuracy"][0])
        self.bytes += float(seen["bytes"].astype(np.float64).sum()) if "bytes" in seen else 0.0

    def result(self) -> dict[str, float]:
        if not self.weight:
            raise ValueError("no scores of nothing: no token was added")
        scores = {
            "loss": self.loss,
            "perplexity": perplexity(self.loss_sum, self.weight),
            "bits_per_byte": bits_per_byte(self.loss_sum, self.bytes),
            "accuracy": self.hits / self.weight,
        }
        return {name: scores[name] for name in self.metrics}

    def report(self) -> dict[str, Any]:
        size = {"bytes": round(self.bytes)} if self.bytes else {"examples": self.examples}
        return {"tokens": int(self.weight), **size, **self.result()}

    def table(self) -> str:
        return table.scores(self.report())
