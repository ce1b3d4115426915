"""Scores of preferences: rewards, which are beta times the logarithm of policy over reference."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxft.metrics import table
from jaxft.metrics.meters import Meter

REWARDS = ("chosen_reward", "rejected_reward")


class PreferenceMeter(Meter):
    """unit: what the report calls what was judged, "pairs" or "responses"."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit
        self.right = 0.0
        self.rewards = {name: np.zeros(2) for name in REWARDS}

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        loss_sum, weight = (float(x) for x in sums["loss"])
        self.add_loss(loss_sum, weight, round(weight))
        self.right += float(sums["accuracy"][0])
        for name, held in self.rewards.items():
            held += np.asarray(sums[name], np.float64)

    def result(self) -> dict[str, float]:
        """`margin`: the mean reward of chosen (good) responses above that of the others."""
        if not self.weight:
            raise ValueError("no scores of nothing: no response was added")
        mean = {
            name: float(total / weight) if weight else float("nan") for name, (total, weight) in self.rewards.items()
        }
        margin = mean["chosen_reward"] - mean["rejected_reward"]
        return {"loss": self.loss, "accuracy": self.right / self.weight, "margin": margin, **mean}

    def report(self) -> dict[str, Any]:
        return {self.unit: self.examples, **self.result()}

    def table(self) -> str:
        return table.scores(self.report())


class BaselineMeter(PreferenceMeter):
    """Of a loss that compares each response with a mean over all: keeps what it is made of (8 bytes a response).

    `sums`: of the ratios and the kinds of all responses, the sums that PreferenceMeter takes of a batch.
    """

    def __init__(self, sums: Callable[[np.ndarray, np.ndarray], Mapping[str, Any]]):
        super().__init__("responses")
        self.sums = sums
        self.ratios: list[np.ndarray] = []
        self.kinds: list[np.ndarray] = []

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        there_BS = seen["kind"] >= 0
        self.ratios.append(seen["ratio"][there_BS])
        self.kinds.append(seen["kind"][there_BS])

    @property
    def _whole(self) -> PreferenceMeter:
        meter = PreferenceMeter(self.unit)
        meter.update(self.sums(np.concatenate(self.ratios), np.concatenate(self.kinds)), {})
        return meter

    def result(self) -> dict[str, float]:
        return self._whole.result()

    def report(self) -> dict[str, Any]:
        return self._whole.report()
