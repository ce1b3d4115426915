"""Losses that jump up, and the batches that a run goes around after it went back because of one."""

import collections
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft import runfolder

# Of a normal distribution the standard deviation is so many times the median distance from the median.
NORMAL = 1.4826
LEAST_SPREAD = 0.01  # of the median: losses that hardly differ would make a spike of any noise
FIX = "bring back the run's own, or delete it: the run then learns from the batches that it went around"


@dataclass(frozen=True)
class Spike:
    step: int
    loss: float
    median: float  # of the losses before
    sigmas: float  # how far above it, in robust standard deviations

    def __str__(self) -> str:
        jump = f"from {self.median:.4g} to {self.loss:.4g} ({self.sigmas:.1f} sigma)"
        return f"step {self.step:,}: the loss jumped {jump}"


class Spikes:
    """Judges each loss by the `window` losses before it; nothing while there are fewer, or with `sigma` 0.

    Only what rises is a spike, and of several in a row only the first. Median and median distance instead of mean and
    deviation: the spikes in the window do not hide the next one.
    """

    def __init__(self, sigma: float, window: int):
        self._sigma, self._high = sigma, False
        self._losses: collections.deque[float] = collections.deque(maxlen=window)

    def add(self, step: int, loss: float) -> Spike | None:
        """Notes the loss of a step. One that is not finite is left to those who attend to it (train.py)."""
        if not self._sigma or not abs(loss) < float("inf"):
            return None
        found = self._judge(step, loss) if len(self._losses) == self._losses.maxlen else None
        self._losses.append(loss)
        first, self._high = found is not None and not self._high, found is not None
        return found if first else None

    def _judge(self, step: int, loss: float) -> Spike | None:
        median = statistics.median(self._losses)
        spread = NORMAL * statistics.median(abs(x - median) for x in self._losses)
        sigmas = (loss - median) / max(spread, LEAST_SPREAD * abs(median), 1e-9)
        return Spike(step, loss, median, sigmas) if sigmas > self._sigma else None

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run judges alike."""
        return {"losses": list(self._losses), "high": self._high}

    def go_back(self, record: Mapping[str, Any]) -> None:
        """To what a checkpoint has kept."""
        self._losses.clear()
        self._losses.extend(record["losses"])
        self._high = record["high"]


def _fits(value: Any) -> bool:
    """Whether the file of detours may hold it."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and all(type(one.get(key)) is int and one[key] >= 0 for key in ("after", "batches"))
        for one in value
    )


class Detours:
    """The batches of a run, which skip some after each rollback. What they skip stands in rollbacks.json.

    So the batch of a step is still a function of the step alone, whichever checkpoint a run goes on from.
    Raises UserError when the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path):
        self._path = path
        self._made: list[dict[str, Any]] = runfolder.read_own(path, _fits, FIX) if path.exists() else []

    def __len__(self) -> int:
        return len(self._made)

    def batch(self, step: int) -> int:
        """The number, from 0, of the batch that `step`, from 1, learns from."""
        return step - 1 + sum(made["batches"] for made in self._made if made["after"] < step)

    def add(self, spike: Spike, after: int, *, writes: bool) -> int:
        """The run goes on after step `after`, and not with a batch that it has used up to `spike`: so many.

        On disk on return, in the process that `writes`.
        """
        following = self.batch(spike.step) + 1
        self._made = [made for made in self._made if made["after"] <= after]
        batches = following - self.batch(after + 1)
        self._made.append(
            {"after": after, "batches": batches, "step": spike.step, "loss": spike.loss, "median": spike.median}
        )
        if writes:
            runfolder.write_json(self._path, self._made)
        return batches
