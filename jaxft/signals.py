"""SIGTERM and SIGINT, owned: finish the step, save, leave; a second signal, or nothing to save, leaves at once.

SIGUSR1 is the wish for a profile; SIGUSR2 writes the Python stacks of all threads to the standard error, at once.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

OWNED = (signal.SIGTERM, signal.SIGINT)
STDERR = 2  # the descriptor


class Stopped(Exception):
    """The run was asked to stop. `code` is the exit status that says by what: 143 SIGTERM, 130 Ctrl-C."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [f"jaxft: {self}"]


def leave(message: str, code: int) -> None:
    """Ends the process with one message, without waiting for threads of libraries that may hang at exit."""
    with contextlib.suppress(OSError):  # whoever reads our output may be gone
        os.write(sys.stderr.fileno(), f"jaxft: {message}\n".encode())
    os._exit(code)


def early() -> None:
    """Before anybody attends to them SIGUSR1 has no effect, and SIGUSR2 tells the stacks; else they end the process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR2, file=STDERR)


class StopSignals:
    """While entered (by the main thread), a SIGTERM or SIGINT ends the process at once: what is on disk is whole.

    Inside `deferred`, where a step may be saved first, the first signal is only noted (`number`, `name`) and the second
    ends the process. A thread acts on the signals: Python runs its own handlers between two instructions of the main
    thread, which for one that compiles means minutes later.

    In the `kernel` of a notebook a SIGINT that would end the process raises KeyboardInterrupt instead, whenever Python
    comes to it: what else the notebook holds is not lost. SIGUSR1 and SIGUSR2 are left to the kernel.
    """

    def __init__(self, *, kernel: bool = False) -> None:
        self.number: int | None = None
        self._kernel, self._interrupts = kernel, 0
        self._deferred = False
        self._wishes = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        # Written by the C handler itself, whatever the main thread is doing: one byte, the number of the signal.
        self._wakeup = signal.set_wakeup_fd(self._writing)
        for number in OWNED:
            self._before[number] = signal.signal(number, self._handle)
        if not self._kernel:
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._wish)
            faulthandler.register(signal.SIGUSR2, file=STDERR)  # in C: also while the main thread is stuck there
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self._kernel:
            faulthandler.unregister(signal.SIGUSR2)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _handle(self, number: int, _frame: Any) -> None:
        if self._kernel and number == signal.SIGINT:
            self._interrupts += 1
            if not self._deferred or self._interrupts > 1:
                raise KeyboardInterrupt

    def _wish(self, _number: int, _frame: Any) -> None:
        self._wishes += 1

    def profile_wished(self) -> bool:
        """Whether SIGUSR1 has come since the last call."""
        wishes, self._wishes = self._wishes, 0
        return wishes > 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, whoever enters looks at `number` and saves. Raises Stopped on leaving, if nobody did after all."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number is not None:
            raise Stopped(self._goodbye(self.name), 128 + self.number)

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else "no signal"

    def _watch(self) -> None:
        while numbers := os.read(self._reading, 1):
            number = numbers[0]
            if number not in OWNED:
                continue
            if self._deferred and self.number is None:
                self.number = number
            elif self._kernel and number == signal.SIGINT:
                continue
            elif self.number is None:
                leave(self._goodbye(signal.Signals(number).name), 128 + number)
            else:
                name = signal.Signals(number).name
                leave(f"{name}: a second signal, stopped without saving; the same command goes on", 128 + number)

    @staticmethod
    def _goodbye(name: str) -> str:
        return f"{name}: stopped; what was saved stands, the same command goes on"
