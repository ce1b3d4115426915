"""What is known of a chunk of the corpus once it is cleaned, in one file: the texts that stay so far, and the rest."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxft import atomic
from jaxft.corpora.cleaning import Cleaned, Gone
from jaxft.corpora.tally import Tally

LEVEL = 3  # of Zstandard: 300 MB/s, and prose becomes a third


@dataclass(frozen=True)
class Part:
    """digests: uint64 [X, 2], signatures: uint32 [X, K], sizes (bytes): int64 [X], places (file, line): int64 [X, 2]
    of the documents that passed the rules; gone: the records that did not."""

    path: Path
    digests: np.ndarray
    signatures: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    tally: Tally
    gone: list[Gone]

    def texts(self) -> Iterator[str]:
        """The documents, in order."""
        return read_texts(self.path)


def write(path: Path, cleaned: Cleaned, signature: int) -> None:
    """Writes the part; `path` is whole or not there. `signature`: numbers of one (0: none)."""
    import zstandard

    kept = cleaned.kept
    texts = [one.text.encode() for one in kept]
    about = {"tally": cleaned.tally.to_json(), "gone": cleaned.gone}
    packed = zstandard.ZstdCompressor(LEVEL).compress(b"".join(texts))
    with atomic.file(path) as draft, draft.open("wb") as file:
        np.savez(
            file,
            digests=np.frombuffer(b"".join(one.digest for one in kept), ">u8").astype(np.uint64).reshape(-1, 2),
            signatures=np.stack([np.zeros(signature, np.uint32), *(one.signature for one in kept)])[1:],
            sizes=np.array([len(text) for text in texts], np.int64),
            places=np.array([(one.file, one.line) for one in kept], np.int64).reshape(-1, 2),
            texts=np.frombuffer(packed, np.uint8),
            about=np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8),
        )


def read(path: Path) -> Part | None:
    """The part without its texts; None where there is none, or a damaged one (zip files have check sums)."""
    try:
        with np.load(path) as arrays:
            about = json.loads(arrays["about"].tobytes())
            arrays["texts"]  # read, since the check sum of what is not read is not tested
            return Part(
                path,
                digests=arrays["digests"],
                signatures=arrays["signatures"],
                sizes=arrays["sizes"],
                places=arrays["places"],
                tally=Tally.from_json(about["tally"]),
                gone=[Gone(*one) for one in about["gone"]],
            )
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, EOFError):
        return None


def read_texts(path: Path) -> Iterator[str]:
    """The texts of the part, in order."""
    import zstandard

    with np.load(path) as arrays:
        sizes, packed = arrays["sizes"], arrays["texts"].tobytes()
    content = io.BytesIO(zstandard.ZstdDecompressor().decompress(packed, max_output_size=max(1, int(sizes.sum()))))
    for size in sizes.tolist():
        yield content.read(size).decode()
