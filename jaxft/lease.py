"""One process group per run in a bucket, where no kernel knows who is alive.

    lock/00000003.json    {"pid": ..., "host": ..., "started": ..., "beat": 17}, or {} when its holder has let go

Who wants the run makes the object of the next number, on the condition that it is not there: one of several can. Its
holder writes it anew every BEAT seconds. A newcomer who sees no change for LEASE seconds, by its own clock, takes over;
a holder that sees a higher number has been taken for dead, and ends.

What this cannot promise: a holder that was cut off from the bucket for LEASE seconds, and comes back, may still write
until it looks, which it does at every beat and just before a checkpoint counts (`check`).
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxft import bucket, remote
from jaxft.registry import UserError
from jaxft.signals import leave

BEAT = 5.0  # seconds
LEASE = 40.0


class Lease:
    """Holds the run at `url` while the `with` block runs. Raises UserError naming pid and host when another does.

    `say` announces that it waits for a sign of life, and a take-over.
    """

    def __init__(self, url: str, *, say: Callable[[str], None]):
        self.url, self._say = url, say
        self._fs, root = bucket.store(url)
        self._folder = f"{root}/lock"
        self._number, self._beats = 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._record = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}

    def __enter__(self) -> "Lease":
        with bucket.talking(self.url, code=2):
            number, holder = self._latest()
            if holder:
                self._wait_for(number, holder)
            self._number = number + 1
            try:
                self._write(self._record | {"beat": 0}, mode="create")
            except FileExistsError:
                raise self._refusal(self._latest()[1]) from None
            if old := [self._path(one) for one in self._numbers() if one < self._number]:
                self._fs.rm(old)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(UserError), bucket.talking(self.url):  # then the next one waits for LEASE seconds
            self._write({})

    def check(self) -> None:
        """Raises UserError when another process has taken over."""
        with bucket.talking(self.url):
            if self._is_taken():
                raise UserError(self._taken(), code=1)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(BEAT):
            try:
                if self._is_taken():
                    leave(self._taken(), 1)
                self._beats += 1
                self._write(self._record | {"beat": self._beats})
                last = time.monotonic()
            except Exception as error:  # the next beat may get through
                if time.monotonic() - last > LEASE - 2 * BEAT:
                    leave(f"{remote.explained(self.url, bucket.FIELD, error)}; the same command goes on", 1)

    def _wait_for(self, number: int, holder: Mapping[str, Any]) -> None:
        """Returns when the holder has let go or shown no life for LEASE seconds."""
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['started']}"
        self._say(f"{self.url} is held by {who}; waiting {LEASE:.0f} s for a sign of life")
        until = time.monotonic() + LEASE
        while time.monotonic() < until:
            time.sleep(min(BEAT, LEASE) / 5)
            now = self._latest()
            if now == (number, {}):
                return
            if now != (number, holder):
                raise self._refusal(now[1])
        self._say(f"{who} is gone without saying goodbye; its lock is taken over")

    def _refusal(self, holder: Mapping[str, Any]) -> UserError:
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['started']}" if holder else "another process"
        return UserError(f"run folder {self.url} is in use by {who}; wait for it, stop it, or choose another --workdir")

    def _is_taken(self) -> bool:
        return max(self._numbers(), default=0) > self._number

    def _taken(self) -> str:
        return f"{self.url} was taken over by another process, which saw no sign of life of this one for {LEASE:.0f} s"

    def _latest(self) -> tuple[int, dict[str, Any]]:
        number = max(self._numbers(), default=0)
        try:
            return number, json.loads(self._fs.cat_file(self._path(number)))
        except FileNotFoundError:  # there is none, or it has just gone
            return number, {}

    def _numbers(self) -> list[int]:
        try:
            names = [path.rpartition("/")[2].partition(".")[0] for path in self._fs.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return []
        return [int(name) for name in names if name.isdecimal()]

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _write(self, record: Mapping[str, Any], mode: str = "overwrite") -> None:
        self._fs.pipe_file(self._path(self._number), json.dumps(record).encode(), mode=mode)
