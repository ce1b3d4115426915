"""Files that are compressed as a whole, by gzip or Zstandard, read as streams of bytes."""

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxft.registry import UserError

ENDINGS = (".gz", ".zst")
WINDOW = 2**31  # bytes that a Zstandard frame may refer back to: as much as `zstd --ultra --long=31` writes
BLOCK = 2**10  # bytes unpacked at once: each 4 of them may become 2**17
# What reading raises where a file was cut off or damaged.
Damaged = (EOFError, zlib.error, gzip.BadGzipFile, ValueError)


def ending(name: str) -> str:
    """ ".gz", ".zst" or "": how a file of that name is packed."""
    return next((one for one in ENDINGS if name.lower().endswith(one)), "")


def unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """The content of `file`, whose name tells how it is packed. Reading raises one of `Damaged`."""
    kind = ending(name)
    if kind == ".gz":
        return gzip.open(file)  # type: ignore[return-value]
    if kind == ".zst":
        return io.BufferedReader(_Zstandard(file), 2**20)  # type: ignore[return-value]
    return file


class _Zstandard(io.RawIOBase):
    """All frames of a file. The library's own reader takes a file that was cut off for a whole one."""

    def __init__(self, file: BinaryIO):
        self._frames = _frames(file)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._rest:
            block = next(self._frames, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _frames(file: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError("a file that ends in .zst needs the library zstandard: pip install zstandard") from error

    frame: Any = None
    while block := file.read(BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
            try:
                content = frame.decompress(block)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from error
            if content:
                yield content
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends in the middle of a Zstandard frame")
