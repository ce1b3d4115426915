"""Where the time of a run goes. Seconds by kind, of all its starts together, in goodput.json of the run folder."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft import runfolder

# Kinds of time. Productive is what is none of the others: training steps, and the devices wait for nothing.
KINDS = {
    "productive": "steps",
    "startup": "start-up",  # until the loop: reading data, weights or a checkpoint; without the compile
    "compile": "compiling",
    "data": "waiting for data",  # the devices had nothing left to do, and the next batch was not there
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",  # while the loop waits for one; most of the writing goes on beside the steps
    "profile": "profiling",
    "lost": "steps lost",  # made, and made again after a kill or undone by a rollback
}
KEPT_EVERY = 10.0  # seconds between two writings of the file: what a kill may leave untold
FIX = "delete it: the run goes on, and forgets only where its time went"


def _fits(value: Any) -> bool:
    """Whether the file may hold it: seconds by kind."""
    if not isinstance(value, dict) or not value.keys() <= KINDS.keys():
        return False
    return all(type(one) in (int, float) and math.isfinite(one) for one in value.values())


class Ledger:
    """Counts from its making on, as start-up. `writes`: this process keeps the file.

    Raises UserError when the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path, *, writes: bool, clock: Callable[[], float] = time.perf_counter):
        self._path, self._writes, self._clock = path, writes, clock
        self._seconds = dict.fromkeys(KINDS, 0.0) | (runfolder.read_own(path, _fits, FIX) if path.exists() else {})
        self._kind, self._since, self._kept = "startup", clock(), clock()

    def enter(self, kind: str) -> str:
        """From now on time is of `kind`. Returns what it was of."""
        now = self._clock()
        self._seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        before = self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, kind: str) -> None:
        """Of the time that goes on, so many seconds were of `kind`."""
        self._seconds[self._kind] -= seconds
        self._seconds[kind] += seconds

    def training(self) -> float:
        """Seconds that went into steps, those among them in which the devices waited for data."""
        spent = self.spent()
        return spent["productive"] + spent["data"]

    def spent(self) -> dict[str, float]:
        """Seconds by kind up to now."""
        self.enter(self._kind)
        return dict(self._seconds)

    def go_back(self, then: Mapping[str, float]) -> None:
        """The run goes on from a checkpoint at which it had spent `then`: the steps made since are lost."""
        now = self.spent()
        self._seconds = {kind: max(now[kind], then[kind]) for kind in KINDS}  # the file may be older than that
        undone = self._seconds["productive"] - then["productive"]
        self._seconds["productive"] -= undone
        self._seconds["lost"] += undone

    def shares(self) -> dict[str, float]:
        """Of all time so far, by names for the log."""
        spent = self.spent()
        whole = max(sum(spent.values()), 1e-9)
        return {f"goodput/{kind}": seconds / whole for kind, seconds in spent.items()}

    def describe(self) -> str:
        """One line."""
        spent = self.spent()
        whole = max(sum(spent.values()), 1e-9)
        others = sorted((kind for kind in KINDS if kind != "productive"), key=lambda kind: -spent[kind])
        parts = [f"{KINDS[kind]} {spent[kind] / whole:.1%}" for kind in others if spent[kind] / whole >= 0.001]
        return f"goodput: {spent['productive'] / whole:.1%} of {whole:,.0f} s in steps; {', '.join(parts)}"

    def keep(self, *, now: bool = False) -> None:
        """Writes the file where it has become old, or `now`."""
        if self._writes and (now or self._clock() - self._kept > KEPT_EVERY):
            runfolder.write_json(self._path, {kind: round(seconds, 3) for kind, seconds in self.spent().items()})
            self._kept = self._clock()


NOTHING = dict.fromkeys(KINDS, 0.0)  # what a run has spent before its start
