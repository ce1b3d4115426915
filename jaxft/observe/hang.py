"""A step that does not end: the stacks of all threads are written to stacks-<rank>.txt, and the run is left alone."""

import datetime
import faulthandler
import threading
from collections.abc import Callable
from pathlib import Path

from jaxft.observe.pace import Pace

LEAST, TIMES = 300.0, 20.0  # it hangs after so many seconds, and so many times the median of the steps before
LOOKS = 30  # within that time


class Hang:
    """While entered, watches `pace`. `step` tells which step the loop is at; people know the file as `place`."""

    def __init__(self, path: Path, place: str, pace: Pace, step: Callable[[], int], say: Callable[[str], None]):
        self._path, self._place, self._pace, self._step, self._say = path, place, pace, step, say
        self._over = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="hang", daemon=True)

    def __enter__(self) -> "Hang":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(LEAST / LOOKS):
            self.look()

    def look(self) -> None:
        """Tells a hang once."""
        quiet = self._pace.quiet()
        hangs = quiet > max(LEAST, TIMES * self._pace.median())
        if hangs and not self._told:
            what = f"step {self._step():,} has not ended for {quiet:.0f} s"
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {what}\n\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
            except OSError as error:
                self._say(f"{what}; the stacks could not be written: {error}")
            else:
                self._say(f"{what}: what every thread is doing is written to {self._place}; the run goes on")
        self._told = hangs
