"""One process group per run folder: two runs that write the same checkpoints would ruin both."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from jaxft.registry import UserError

NAME = "run.lock"


class RunLock:
    """Holds `folder/run.lock` while the `with` block runs.

    The truth is an flock, which the kernel drops when its holder dies, however it dies: a holder that is gone needs no
    guessing about reused process ids. What the file says (pid, host, start) is for messages, and for file systems whose
    flock does not reach other hosts: a file left by another host is never taken over.

    Raises UserError naming pid and host when another process holds the folder. `say` announces a take-over.
    """

    def __init__(self, folder: str | os.PathLike[str], *, say: Callable[[str], None]):
        self.path = Path(folder) / NAME
        self._say = say
        self._file: TextIO | None = None

    def __enter__(self) -> "RunLock":
        file = self._open()
        try:
            held = self._flock(file)
            holder = _read(file)
            if not held or (holder and holder["host"] != socket.gethostname()):
                raise self._refusal(holder)
            if holder:
                self._say(
                    f"the process that held {self.path.parent} (pid {holder['pid']}, started {holder['started']}) is "
                    "gone without saying goodbye; its lock is taken over"
                )
            _write(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._file is not None:
            # Emptied, not removed: a removed file could be locked by one process while another locks its successor.
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _open(self) -> TextIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"run folder {self.path.parent} cannot be used: {error.strerror} ({error.filename}); "
                "choose another --workdir, or make this one a folder that you can write"
            ) from error

    def _flock(self, file: TextIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks
            self._say(f"{self.path} cannot be locked ({error.strerror}): nothing keeps a second run out of this folder")
        return True

    def _refusal(self, holder: dict[str, Any] | None) -> UserError:
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['started']}" if holder else "another process"
        fix = "wait for it, stop it, or choose another --workdir"
        if holder and holder["host"] != socket.gethostname():
            fix = f"if that process is gone, remove {self.path} and start again"
        return UserError(f"run folder {self.path.parent} is in use by {who}; {fix}")


def _read(file: TextIO) -> dict[str, Any] | None:
    """The holder's record; None where the file is empty or was half written by a dying process."""
    file.seek(0)
    try:
        record = json.loads(file.read())
    except ValueError:
        return None
    complete = isinstance(record, dict) and {"pid", "host", "started"} <= record.keys()
    return record if complete else None


def _write(file: TextIO) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    record = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
    file.seek(0)
    file.truncate()
    file.write(record + "\n")
    file.flush()
