"""A full disk: told from other errors, with the name of the file that had no room."""

import contextlib
import errno
from collections.abc import Iterator
from os import PathLike

from jaxft.registry import UserError

# The last is a limit on the size of files: of the file system, or of the shell (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries in C++ and Rust have errors of their own; the words are those of the system.
_WORDS = ("No space left", "quota exceeded", "File too large")


def is_full(error: BaseException) -> bool:
    """Whether `error` says that there was no room to write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(word in str(error) for word in _WORDS)


@contextlib.contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Inside, `path` is written: a full disk is then reported with this name, which errors of writing lack."""
    try:
        yield
    except OSError as error:
        if is_full(error) and error.filename is None:
            error.filename = str(path)
        raise


def explained(error: BaseException) -> UserError:
    """The message about a full disk; `error` may be of the closing of a file whose writing had failed before."""
    file, at = "", error
    while at is not None:
        if isinstance(at, OSError) and at.filename is not None:
            file = str(at.filename2 or at.filename)  # of a copy the second is the target
        at = at.__context__
    reason = error.strerror if isinstance(error, OSError) else str(error).strip().splitlines()[0]
    what = f"{file} could not be written: " if file else "a file could not be written: "
    return UserError(f"{what}{reason}; free space there, or choose another folder, then give the same command again", 1)
