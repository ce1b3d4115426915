"""How long each step takes, seen by a thread that waits for its end: so the loop stays a step ahead of the devices.

A step begins when the one before it ends, or when the loop comes back from elsewhere, and ends when its sums are there.
So the time of a step holds all that the devices waited for: the batch above all.
"""

import collections
import contextlib
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

RECENT = 64  # steps that the median is of
ENOUGH = 16  # steps before anybody judges
SLOW, WORTH = 3.0, 1.0  # an outlier takes so many times the median, and costs so many seconds
QUIET = 60.0  # seconds from one line about outliers to the next


class Pace:
    """While entered, times the steps that are handed to `add`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._lock = threading.Lock()
        self._running: queue.SimpleQueue[tuple[int, float, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._since_log: list[float] = []
        self._slow: list[str] = []
        self._said = -QUIET
        self._pending, self._away = 0, False
        self._from = self._heard = clock()

    def __enter__(self) -> "Pace":
        self._thread.start()
        self.come_back()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._running.put(None)
        self._thread.join(timeout=1)  # of a step that never ends it waits for ever

    def add(self, step: int, sums: Any, waited: float) -> None:
        """Step `step` is on its way, after `waited` seconds for its batch."""
        with self._lock:
            self._pending += 1
        self._running.put((step, waited, sums))

    def _run(self) -> None:
        while (item := self._running.get()) is not None:
            step, waited, sums = item
            try:
                jax.block_until_ready(sums)
            except RuntimeError:  # the loop meets it as well, and says what it is
                return
            del item, sums
            self.end(step, waited)

    def end(self, step: int, waited: float) -> None:
        """Notes that a step has ended just now."""
        with self._lock:
            now = self._clock()
            seconds = now - self._from
            self._pending -= 1
            self._from = self._heard = now
            if len(self._recent) >= ENOUGH:
                median = statistics.median(self._recent)
                if seconds > SLOW * median and seconds - median > WORTH:
                    data = f", {waited:.1f} s of it waiting for data" if waited > 0.1 * seconds else ""
                    times = seconds / max(median, 1e-9)
                    self._slow.append(f"step {step:,} took {seconds:.1f} s{data}: {times:,.0f} times the median")
            self._recent.append(seconds)
            self._since_log.append(seconds)

    def idle(self, asked: float, got: float) -> float:
        """Of the seconds from `asked` to `got`, in which the loop waited for a batch, those with no step running."""
        with self._lock:
            return 0.0 if self._pending else max(0.0, got - max(asked, self._from))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Inside no step runs, and nobody waits for one."""
        self._away = True
        try:
            yield
        finally:
            self.come_back()

    def come_back(self) -> None:
        with self._lock:
            self._from = self._heard = self._clock()
            self._away = False

    def quiet(self) -> float:
        """Seconds since a step ended, while one should."""
        with self._lock:
            return 0.0 if self._away else self._clock() - self._heard

    def median(self) -> float:
        with self._lock:
            return statistics.median(self._recent) if self._recent else 0.0

    def outliers(self) -> Iterator[str]:
        """What there is to say of slow steps: a line now and then."""
        with self._lock:
            if self._slow and self._clock() - self._said >= QUIET:
                first, *more = self._slow
                self._said, self._slow = self._clock(), []
                yield first + (f"; {len(more)} more outliers since" if more else "")

    def metrics(self) -> dict[str, float]:
        """Of the steps that ended since the last call."""
        with self._lock:
            times, self._since_log = self._since_log, []
        return {"step_seconds": statistics.median(times), "step_seconds_max": max(times)} if times else {}
