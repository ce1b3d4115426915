"""Files and folders that are whole or not there, whatever happens: written beside their place, then renamed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxft import disk

BUILDING = ".building-"  # how the names of folders begin that are being filled


@contextlib.contextmanager
def file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The file to write inside, which becomes `path` at the end, on disk; after an error `path` is what it was.

    A full disk is reported with the name `path`. `shared`: several processes may write it at a time.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        with disk.writing(path):
            yield draft
            sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """The file `path` holds its old content or all of `text`; on disk on return."""
    with file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """The folder to fill inside, which becomes `path` at the end, unless another process was there first.

    A full disk is reported with the name `path`.
    """
    with disk.writing(path), building(path.parent) as aside:
        made = aside / path.name
        made.mkdir()
        yield made
        publish(made, path)


def publish(made: Path, path: Path) -> None:
    """Renames the folder `made` to `path`; where another process built the same meanwhile, that one stays."""
    try:
        os.rename(made, path)
    except OSError:
        if not path.exists():
            raise


@contextlib.contextmanager
def building(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` to build in and to rename what is whole; removed at the end, if it is still there.

    What killed builders left is removed first. Who builds holds a lock on the folder, which the kernel drops when its
    holder dies, however it dies: one that can be locked is nobody's.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left_over in parent.glob(f"{BUILDING}*"):
        with _locked(left_over, fcntl.LOCK_NB) as held:
            if held:
                shutil.rmtree(left_over, ignore_errors=True)
    with contextlib.ExitStack() as holding:
        aside = None
        # Between its making and its locking another process may take the folder for a left-over: then make another.
        while aside is None or not aside.exists():
            aside = Path(tempfile.mkdtemp(dir=parent, prefix=BUILDING))
            holding.enter_context(_locked(aside))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: int = 0) -> Iterator[bool]:
    """Whether the folder is locked inside; not where it is gone, or on a file system without locks."""
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX | wait)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
