"""A folder of files with a sha256 manifest, and the folder that it is built in."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MANIFEST = "manifest.json"
BUILDING = ".building-"


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
        folder = None
        # Between its making and its locking another process may take the folder for a left-over: then make another.
        while folder is None or not folder.exists():
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=BUILDING))
            holding.enter_context(_locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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


def seal(folder: Path) -> None:
    """Writes the manifest: size and sha256 of every file."""
    manifest = {file.name: _identity(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def fault(folder: Path) -> str:
    """What is wrong with a sealed folder, "" when nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, identity in manifest.items():
            if _identity(folder / name) != identity:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""


def mapped(file: Path, dtype: str) -> np.ndarray:
    """The file as a read-only memory-mapped vector (an empty file cannot be mapped: an empty vector)."""
    if not file.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype, "r")


def _identity(file: Path) -> list[int | str]:
    with open(file, "rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
