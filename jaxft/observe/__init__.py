"""What watches a run while it trains, one file for each concern, and `Observer`, through which the loop meets them."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from jaxft import memory, processes
from jaxft.observe.hang import Hang
from jaxft.observe.pace import Pace
from jaxft.observe.profile import Profiler
from jaxft.observe.recompiles import Recompiles
from jaxft.signals import Stopped


class Observer:
    """While entered, sees where the time of `run` goes and says what is unusual. It never waits for a step."""

    def __init__(self, run: Any):
        self._run, self._ledger = run, run.ledger
        self._step, self._newest = run.step, None
        folder, say = run.folder, run.say
        self._pace = Pace()
        stacks, traces = f"stacks-{jax.process_index()}.txt", folder.profile
        if processes.several():  # of one host they would write the same files
            traces = traces / f"process-{jax.process_index()}"
        self._hang = Hang(folder.path / stacks, f"{folder.place}/{stacks}", self._pace, lambda: self._step, say)
        self._recompiles = Recompiles(lambda: self._step, say, lambda seconds: self._ledger.move(seconds, "compile"))
        wished = run.signals.profile_wished
        place = f"{folder.place}/{traces.relative_to(folder.path)}"
        self._profiler = Profiler(traces, place, run.config.profile.steps, done=run.step, wished=wished, say=say)
        self._waited = 0.0
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Observer":
        for one in (self._pace, self._hang, self._recompiles):
            self._closing.enter_context(one)
        self._closing.callback(lambda: self._profiler.stop(self._step))
        self._closing.enter_context(self._ledger.of("productive"))
        self._ledger.keep(now=True)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        with self._closing:
            if error is None or isinstance(error, Stopped):  # else there may be no room, and one error is enough
                self._ledger.keep(now=True)
                self._run.say(self._ledger.describe())

    def batch(self, feed: Iterator[Any]) -> Any:
        """The next of `feed`. Data are waited for while no step runs: before that nothing is lost."""
        asked = time.perf_counter()
        batch = next(feed)
        self._waited = self._pace.idle(asked, time.perf_counter())
        self._ledger.move(self._waited, "data")
        return batch

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Inside, `step` gets its batch and is given to the devices."""
        self._step = step
        if self._profiler.due(step):
            with self.during("profile"):
                self._profiler.start()
        with jax.profiler.StepTraceAnnotation("train", step_num=step), self._recompiles.during("step"):
            yield

    def add(self, step: int, sums: Any) -> None:
        """The step is on its way; `sums` are there when it ends."""
        self._newest = sums
        self._pace.add(step, sums, self._waited)
        if self._profiler.over(step):
            with self.during("profile"):
                self._profiler.stop(step)
        for text in self._pace.outliers():
            self._run.say(text)
        self._ledger.keep()

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Inside, when the newest step has ended, no step runs and time is of another `kind` (goodput.KINDS)."""
        jax.block_until_ready(self._newest)
        with self._ledger.of(kind), self._pace.away(), self._recompiles.during(kind):
            yield

    def logging(self) -> contextlib.AbstractContextManager[None]:
        """Inside, numbers are made for the log; the first time some of what that takes is compiled."""
        return self._recompiles.during("log")

    def metrics(self) -> dict[str, float]:
        """For the log: step times, memory of the devices, shares of the time."""
        return self._pace.metrics() | memory.in_use(self._run.mesh) | self._ledger.shares()
