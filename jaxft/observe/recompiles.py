"""What is compiled while the loop runs, said as it happens. It should be nothing: shapes are the same in every step."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Of an XLA program, also of one that is read from the compile cache.
EVENT = "/jax/core/compile/backend_compile_duration"
MOST = 3  # times that one function is named


class Recompiles:
    """While entered, hears what the main thread compiles.

    What happens for the first time (the first step, the first evaluation) has to compile and is not named. `told` is
    given the seconds of every compile.
    """

    def __init__(self, step: Callable[[], int], say: Callable[[str], None], told: Callable[[float], None]):
        self._step, self._say, self._told = step, say, told
        self._phase = "step"
        self._known: set[str] = set()
        self._named: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "Recompiles":
        jax.monitoring.register_event_duration_secs_listener(self.hear)
        return self

    def __exit__(self, *_exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.hear)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, compiles are of `phase`."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._known.add(phase)
            self._phase = before

    def hear(self, event: str, duration_secs: float, **about: Any) -> None:
        if event != EVENT or threading.current_thread() is not threading.main_thread():
            return
        self._told(duration_secs)
        if self._phase not in self._known:
            return
        name = str(about["fun_name"]).removeprefix("jit(").removesuffix(")") if "fun_name" in about else "a function"
        self._named[name] += 1
        if self._named[name] <= MOST:
            within = "" if self._phase == "step" else f", in its {self._phase}"
            last = "; no more is said of this one" if self._named[name] == MOST else ""
            self._say(f"step {self._step():,}{within}: recompiled {name} in {duration_secs:.2f} s{last}")
