"""Traces of a few steps for XProf and Perfetto: those of profile.steps, and the next ones whenever SIGUSR1 comes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

AFTER_SIGNAL = 3  # steps


class Profiler:
    """Writes `folder`/<first step>/, one trace at a time; people know the folder as `place`.

    `wished` says, once, whether a signal has come; `done` is the last step made.
    """

    def __init__(
        self,
        folder: Path,
        place: str,
        steps: Sequence[int],
        *,
        done: int,
        wished: Callable[[], bool],
        say: Callable[[str], None],
    ):
        self._folder, self._place, self._wished, self._say = folder, place, wished, say
        self._planned = (steps[0], steps[1]) if steps else None
        self._first = self._last = 0  # of the trace that is being made; 0: none is
        if self._planned and self._planned[0] <= done:
            first, last = self._planned
            self._planned = (done + 1, last) if done < last else None
            left = f"steps {done + 1:,} to {last:,} are traced" if self._planned else "nothing is traced"
            say(f"profile.steps={first},{last}: the run goes on after step {done:,}; {left}")

    def due(self, step: int) -> bool:
        """Whether a trace has to begin before `step`. What comes while one is made waits for its end."""
        if self._last:
            return False
        if self._planned and step >= self._planned[0]:
            self._first, self._last = step, max(step, self._planned[1])
            self._planned = None
        elif self._wished():
            self._first, self._last = step, step + AFTER_SIGNAL - 1
        return self._last > 0

    def over(self, step: int) -> bool:
        """Whether the trace has to end after `step`."""
        return self._last == step > 0

    def start(self) -> None:
        try:
            # Without the calls of Python, which make a trace many times as large, and slow what it shows.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            folder = self._folder / str(self._first)
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
        except (RuntimeError, OSError) as error:  # another one is being made, or the folder cannot be written
            self._say(f"no trace of step {self._first:,}: {error}")
            self._first = self._last = 0

    def stop(self, step: int) -> None:
        """Ends the trace, if one is being made, after `step`, the last one in it, which has ended."""
        if not self._last:
            return
        traced = f"steps {self._first:,} to {step:,}" if step > self._first else f"step {self._first:,}"
        where = f"{self._place}/{self._first}"
        self._first = self._last = 0
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError, ValueError) as error:  # ValueError: of a trace that cannot be read again
            self._say(f"no trace of {traced}: {error}")
            return
        self._say(f"trace of {traced}: {where} (xprof --logdir={self._place}, or *.json.gz in ui.perfetto.dev)")
