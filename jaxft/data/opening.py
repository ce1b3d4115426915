"""Opens a file of rows by its name: the right format, gzip or Zstandard undone, mapped instead of read."""

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from jaxft import disk, remote
from jaxft.data import packed, sentences, text_formats
from jaxft.data.questions import Squad
from jaxft.registry import UserError, nearest

FORMATS: Mapping[str, Callable[[str, Any], "Table"]] = text_formats.FORMATS | sentences.FORMATS | {"json": Squad}
ENDINGS = ", ".join(f".{name}" for name in (*FORMATS, "parquet"))


class Table(Protocol):
    """A file of rows. A span is (start, end, line number): bytes of a text file, row numbers of a parquet file."""

    def spans(self) -> Iterator[tuple[int, int, int]]: ...
    def record(self, start: int, end: int) -> bytes: ...
    def read(self, start: int, end: int) -> dict[str, Any]: ...


def open_table(path: str, field: str) -> Table:
    """The file as a table. `field` names the config key or flag in errors.

    Raises UserError when the file is missing, empty, of an unknown format, or has a bad header.
    """
    check(path, field)
    ending, buffer = _ending(path), open_bytes(path, field)
    if ending == "parquet":
        from jaxft.data.parquet import Parquet

        return Parquet(path, buffer)
    return FORMATS[ending](path, text(buffer, path, field))


def where(table: Table, path: str, number: int) -> str:
    """The place of a row, in words: the line of a text, the row of a table, or what else is counted there."""
    unit = getattr(table, "unit", "")
    return f"{path}: {unit} {number}" if unit else f"{path}:{number}"


def open_bytes(path: str, field: str) -> mmap.mmap:
    """What a file that is there holds, unpacked. Raises UserError for an empty one and a broken archive."""
    with open(remote.file(path, field), "rb") as opened:
        file = _unpacked(opened, path, field) if packed.ending(path) else opened
        with file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{field}={path!r} is empty; give a file with at least one row")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def text(buffer: mmap.mmap, path: str, field: str) -> mmap.mmap:
    """The same of a file of text. Raises UserError for UTF-16."""
    if buffer[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{field}={path!r} is UTF-16; save it as UTF-8")
    return buffer


def sha256(path: str) -> str:
    with open(remote.file(path, "file"), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: str, field: str) -> None:
    """Raises UserError when the file is missing or of an unknown format; reads nothing."""
    if _ending(path) not in (*FORMATS, "parquet"):
        raise UserError(f"{field}={path!r}: the name must end in one of {ENDINGS}, or in one of these and .gz or .zst")
    check_there(path, field)


def check_there(path: str, field: str) -> None:
    """Raises UserError when there is no such file."""
    if remote.is_remote(path):
        return remote.check(path, field)
    if os.path.isfile(path):
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UserError(f"{field}={path!r}: the folder {folder} does not exist")
    there = [entry.name for entry in folder.iterdir() if entry.is_file()]
    kind = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
    raise UserError(f"{field}={path!r} {kind}{nearest(Path(path).name, there)}")


def _ending(path: str) -> str:
    return Path(path).name.lower().removesuffix(packed.ending(path)).rpartition(".")[2]


def _unpacked(opened: BinaryIO, path: str, field: str) -> BinaryIO:
    """The content of a packed file in a nameless temporary file: random access needs it whole."""
    temporary = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with disk.writing(tempfile.gettempdir()), packed.unpacked(opened, path) as stream:
            shutil.copyfileobj(stream, temporary, 2**20)
            temporary.flush()
    except packed.Damaged as error:
        temporary.close()
        kind = {".gz": "gzip", ".zst": "Zstandard"}[packed.ending(path)]
        raise UserError(f"{field}={path!r} is not a whole {kind} file ({error}); fetch or write it again") from error
    return temporary
