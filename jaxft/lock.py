"""One process group per run folder: two runs that write the same checkpoints would ruin both."""

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from jaxft.registry import UserError

NAME = "run.lock"
MOUNTS = Path("/proc/self/mountinfo")
# File systems that several hosts may have mounted, and the unknown one. Whether an flock on them reaches the others
# depends on versions and mount options.
SHARED = re.compile(
    r"|nfs.*|cifs|smb.*|9p|virtiofs|fuse(\..*)?|ceph|lustre|gpfs|beegfs|glusterfs|afs|gfs2?|ocfs2|pvfs2|orangefs|panfs|wekafs"
)


class RunLock:
    """Holds `folder/run.lock` while the `with` block runs.

    The truth is an flock, which the kernel drops when its holder dies, however it dies: a holder that is gone needs no
    guessing about reused process ids, or about a container that comes back under another host name. What the file says
    (pid, host, start) is for messages, and for file systems whose flock may not reach other hosts (`is_shared`): there
    a file left by another host is never taken over.

    Raises UserError naming pid and host when another process holds the folder. `say` announces a take-over.
    """

    def __init__(self, folder: str | os.PathLike[str], *, say: Callable[[str], None]):
        self.path = Path(folder) / NAME
        self._say = say
        self._file: TextIO | None = None

    def __enter__(self) -> "RunLock":
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(self._open())
            held = self._flock(file)
            holder = _read(file)
            elsewhere = holder is not None and holder["host"] != socket.gethostname()
            if not held or (elsewhere and is_shared(self.path)):
                raise self._refusal(holder)
            if holder:
                self._say(
                    f"the process that held {self.path.parent} (pid {holder['pid']}, started {holder['started']}) is "
                    "gone without saying goodbye; its lock is taken over"
                )
            _write(file)
            undo.pop_all()  # it stays open
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
        if holder and holder["host"] != socket.gethostname() and is_shared(self.path):
            fix = f"if that process is gone, remove {self.path} and start again"
        return UserError(f"run folder {self.path.parent} is in use by {who}; {fix}")


def is_shared(path: Path) -> bool:
    """Whether other hosts may hold files of the file system of `path` without our flock knowing; so when in doubt."""
    return SHARED.fullmatch(file_system(path)) is not None


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on, as in /proc/self/mountinfo; "" where there is no such list."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, found = path.resolve(), (-1, "")
    for line in lines:
        # 36 35 98:0 /root /mount/point options - type source options; blanks in a path are written \040.
        fields = line.split()
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= found[0]:  # of two in one place the later one counts
            found = len(mounted.parts), fields[fields.index("-") + 1]
    return found[1]


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
