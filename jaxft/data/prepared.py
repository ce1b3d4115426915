"""A corpus that `python -m jaxft.prepare` made: documents in tokens already, in array_record files, at random access.

The folder has corpus.json (`Index`), the files that it lists, and tokenizer/, the one that made the tokens. A record is
a document: a header (HEADER), then its token ids.

Sizes of all shards are compared with corpus.json whenever a corpus is opened. A shard's sha256 is compared when it is
first read: that of all shards when the token cache is built, which reads every one of them anyway; later runs read the
cache, which has hashes of its own, and of each split one document, so one shard. A corpus of terabytes is hashed once.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import remote
from jaxft.data.opening import sha256
from jaxft.data.source import Dataset, Rows, Split, fingerprint
from jaxft.registry import UserError, nearest

INDEX, TOKENIZER, ENDING = "corpus.json", "tokenizer", ".array_record"
FORMAT = 1
HEADER = struct.Struct("<III")  # bytes of the text in UTF-8; number of the source file; line
# One record in a chunk: read alone. Zstandard, the default, finds little in token ids, and takes no time.
OPTIONS = "group_size:1,zstd:1"


@dataclass(frozen=True)
class Shard:
    """file: its name in the folder; sha256 and size: of the file; the rest is counted, bytes in UTF-8."""

    file: str
    sha256: str
    size: int
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Index:
    """splits: name -> shards, in order. sources: files that the documents were read from. dtype: of the ids."""

    splits: Mapping[str, Sequence[Shard]]
    sources: Sequence[str]
    dtype: str

    def text(self) -> str:
        """What stands in corpus.json."""
        shards = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        return json.dumps(
            {"format": FORMAT, "dtype": self.dtype, "splits": shards, "sources": list(self.sources)}, indent=1
        )


def pack(ids: np.ndarray, size: int, file: int, line: int, dtype: str) -> bytes:
    """A record: a document's token ids, its bytes in UTF-8, and where it was read."""
    return HEADER.pack(size, file, line) + ids.astype(dtype).tobytes()


def prepared(*, folder: str) -> Dataset:
    """The splits of a prepared corpus; columns ids (token ids) and bytes (of the text in UTF-8).

    The data set brings its tokenizer. Raises UserError for a folder that is none, or not finished, or damaged; for a
    shard of another content than was written when its first row is read.
    """
    path = remote.folder(folder, "data.folder", _is_read)
    if not (path / INDEX).is_file():
        why = (
            "is not finished: give the command that prepares it again" if (path / "work").is_dir() else "does not exist"
        )
        near = "" if path.is_dir() else nearest(path.name, [one.name for one in path.absolute().parent.glob("*/")])
        raise UserError(f"data.folder={folder!r}: the corpus {why if path.is_dir() else 'does not exist'}{near}")
    index = read_index(path)
    splits = {}
    for name, shards in index.splits.items():
        for shard in shards:
            file = path / shard.file
            size = file.stat().st_size if file.is_file() else -1
            if size != shard.size:
                _refuse(file, "is missing" if size < 0 else f"has {size:,} bytes instead of {shard.size:,}")
        rows = Documents(path, shards, index.dtype)
        identity = fingerprint(shards=[shard.sha256 for shard in shards], dtype=index.dtype)
        splits[name] = Split(rows, identity, lambda i, rows=rows: rows.where(i, index.sources))
    return Dataset("prepared", splits, {}, tokenizer=path / TOKENIZER)


def _is_read(name: str) -> bool:
    return name == INDEX or name.startswith(f"{TOKENIZER}/") or name.endswith(ENDING)


def _refuse(file: Path, what: str) -> None:
    raise UserError(f"data.folder={str(file.parent)!r}: {file.name} {what}; copy or prepare the corpus again")


def read_index(path: Path) -> Index:
    """The corpus.json of the folder `path`. Raises UserError where another version of jaxft wrote it, or nobody did."""
    try:
        raw = json.loads((path / INDEX).read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        splits = {name: [Shard(**shard) for shard in shards] for name, shards in raw["splits"].items()}
        for shard in (shard for shards in splits.values() for shard in shards):
            if Path(shard.file).name != shard.file:  # a path may lead out of the folder
                raise ValueError(f"{shard.file!r} is no file of the folder")
        return Index(splits, raw["sources"], raw["dtype"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / INDEX} is not one that this version reads ({error}); prepare the corpus again"
        ) from error


class Documents(Rows):
    """Documents of shards in a row: {"ids": [tokens], "bytes": int}."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str):
        self._folder, self._shards, self._dtype = folder, shards, dtype
        self._offsets = np.cumsum([0, *(shard.documents for shard in shards)])  # the first document of each shard
        self._open: dict[int, Any] = {}  # number of a shard that was read -> its reader

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def row(self, index: int) -> dict[str, Any]:
        (size, _, _), record = self._read(index)
        return {"ids": np.frombuffer(record, self._dtype, offset=HEADER.size), "bytes": size}

    def where(self, index: int, sources: Sequence[str]) -> str:
        (_, file, line), _ = self._read(index)
        return f"{sources[file]}:{line}"

    def _read(self, index: int) -> tuple[tuple[int, int, int], bytes]:
        number = int(np.searchsorted(self._offsets, index, side="right")) - 1
        if number not in self._open:
            self._open[number] = self._reader(self._shards[number])
        record = self._open[number][index - int(self._offsets[number])]
        return HEADER.unpack_from(record), record

    def _reader(self, shard: Shard) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        file = self._folder / shard.file
        found = sha256(str(file))
        if found != shard.sha256:
            _refuse(file, f"has changed: sha256 {found[:12]}... instead of {shard.sha256[:12]}...")
        return ArrayRecordDataSource([str(file)])
