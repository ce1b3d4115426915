"""The token cache: a split's features, computed once and memory-mapped ever after.

A cache is a folder named by the hash of all it depends on, and of where the rows lie. It is written aside and renamed,
so that the first of two processes wins, and carries a sha256 manifest: a damaged one is noticed, said aloud and built
again.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import atomic, disk
from jaxft.data import cache_files
from jaxft.data.source import Split, fingerprint, refuse_bad
from jaxft.data.token_writer import Chunk, TokenWriter, flatten, labels_of, spread
from jaxft.registry import BadRow, UserError

CODE_VERSION = 6  # raise it when the same input gives other tokens or another layout
CHUNK = 4096  # examples handed to the tokenizer at once: enough to keep its threads busy, little to hold

# Of texts to (ids, types, truncated) or LeftOut; where tokens have labels to such with a method `tags`: of an example's
# label the label of each token, and how many there was no token for; where the characters of tokens are to be known
# with `chars`. Of a text that was read in several pieces what token_writer.spread takes.
Encode = Callable[[list[tuple[Any, str | None]]], Sequence[Any]]


@dataclass(frozen=True)
class TokenCache:
    """Example x has tokens ids[offsets[x] : offsets[x + 1]].

    ids: uint16 or uint32 [tokens], types: uint8 [tokens] (token types), both memory-mapped; offsets: int64 [X + 1];
    labels: int32 or float32 [X], float32 [X, C]; all -100 when the examples have none. Where tokens have labels: tags,
    int32 [tokens], has them (a word's at its first token) and -100 at all others, and labels, int32 [X], how many of an
    example have no token. chars, int32 [tokens, 2]: where in the second text of a pair a token begins and ends, -1 for
    tokens of none; None where nobody asked. row: int64 [X], index in the split, the same for pieces of one.
    counts: rows, kept, bad, dropped, truncated, empty (texts), lost (labels without a token). max_id, max_type: largest
    token id and type. bad, dropped: (where, reason) of the first bad rows, and of those that an option leaves out; up
    to a thousand are in bad_rows.json and dropped_rows.json of `folder`.
    fingerprint: what the tokens depend on, hashed. A cache that is not kept (`in_memory`) has no folder and no
    fingerprint.
    """

    folder: Path | None
    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    tags: np.ndarray | None
    chars: np.ndarray | None
    row: np.ndarray
    counts: dict[str, int]
    max_id: int
    max_type: int
    bad: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    fingerprint: str

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [X]."""
        return np.diff(self.offsets)

    @property
    def begins(self) -> np.ndarray:
        """Where the examples of each row that has any begin, and the number of all: int64 [rows + 1]."""
        first_X = np.diff(self.row, prepend=-1) != 0
        return np.append(np.flatnonzero(first_X), len(self.row))

    def check_ids(self, vocab: int, types: int, where: Callable[[int], str]) -> None:
        """Raises UserError with the row when a token id or type has no embedding; `where` is the split's.

        `vocab` and `types` are rows of the embeddings; a family without types (0) ignores them. On an accelerator such
        a look-up would silently return another row.
        """
        for what, largest, of_tokens, rows, fix in (
            ("id", self.max_id, self.ids, vocab, "the tokenizer does not belong to the model; use the model's own"),
            (
                "type",
                self.max_type,
                self.types,
                types,
                "the model was not made for pairs of texts; give it single ones",
            ),
        ):
            if rows and largest >= rows:
                token = int(np.argmax(np.asarray(of_tokens) >= rows))
                example = int(np.searchsorted(self.offsets, token, side="right")) - 1
                raise UserError(
                    f"{where(int(self.row[example]))} has a token of {what} {of_tokens[token]}, but the embedding "
                    f"of {what}s has {rows} rows: {fix}"
                )


def build(
    split: Split,
    example: Callable[[Mapping[str, Any]], Any],
    encode: Encode,
    *,
    key: dict[str, str],
    folder: str,
    on_bad: str,
) -> TokenCache:
    """The cache of `split` below `folder`, read if it is there and whole, built otherwise.

    example: row -> object with .text, .pair (None = single text) and .label (int, float, list of numbers or None), or
        with .text a list of words and .label as many whole numbers; or a list of such, which follow each other in the
        cache with the same `row`; raises BadRow for a row that cannot be used.
    encode: (text, pair) list -> what Encode says of each.
    key: whatever else decides the content (tokenizer fingerprint, task, its options).
    on_bad: "stop" = UserError that quotes the first bad rows; "skip" = they are counted and left out.
    """
    identity = fingerprint(source=split.fingerprint, code=CODE_VERSION, key=key)
    # Bad rows are kept by their place, so equal content in another place has a cache of its own. Another release of the
    # tokenizers may read the same file otherwise: so it has one, too, but may go on with a run.
    path = Path(folder) / fingerprint(identity=identity, place=split.place, tokenizers=version("tokenizers"))
    cache = _load(path, identity)
    if cache is None:
        _write(split, example, encode, path)
        cache = _load(path, identity)
        assert cache is not None, f"{path} was just written and verified"
    refuse_bad(cache.counts, cache.bad or cache.dropped, path, on_bad)
    return cache


def in_memory(examples: Sequence[Any], encode: Encode) -> TokenCache:
    """A cache of these examples that is not kept, for prediction; their labels may be None. `row` counts from 0.

    An item that is a list of examples gives them all the same `row`, as in `build`.
    """
    chunk = Chunk()
    for row, one in enumerate(examples):
        chunk.append(row, one if isinstance(one, list) else [one])
    chunk, encoded, counted = spread(chunk, encode(chunk.texts))
    ids, types = flatten(encoded)
    offsets = np.cumsum([0, *(len(one[0]) for one in encoded)], dtype=np.int64)
    truncated = sum(bool(one[2]) for one in encoded)
    labels, tags = labels_of(chunk.labels, encoded, "the first example")
    lost = 0 if tags is None else int(labels.sum())
    counts = dict.fromkeys(("bad", "dropped", "empty"), 0) | {"truncated": truncated, "lost": lost}
    return TokenCache(
        folder=None,
        ids=ids,
        types=types,
        offsets=offsets,
        labels=labels,
        tags=tags,
        chars=np.concatenate([one.chars for one in encoded]) if encoded and hasattr(encoded[0], "chars") else None,
        row=np.array(chunk.rows, np.int64),
        counts={"rows": len(examples), "kept": len(examples), **counts, **counted},
        max_id=int(ids.max(initial=0)),
        max_type=int(types.max(initial=0)),
        bad=(),
        dropped=(),
        fingerprint="",
    )


def _load(path: Path, identity: str) -> TokenCache | None:
    """None when there is no cache or a damaged one (said aloud, and removed)."""
    if not path.exists():
        return None
    fault = cache_files.fault(path)
    if fault:
        print(f"jaxft: the token cache {path} is damaged ({fault}); building it again", file=sys.stderr, flush=True)
        shutil.rmtree(path, ignore_errors=True)
        return None
    report = json.loads((path / "report.json").read_text())
    bad, dropped = (json.loads((path / f"{name}_rows.json").read_text()) for name in ("bad", "dropped"))
    return TokenCache(
        folder=path,
        ids=cache_files.mapped(path / "ids.bin", report["id_dtype"]),
        types=cache_files.mapped(path / "types.bin", "uint8"),
        offsets=np.load(path / "offsets.npy"),
        labels=np.load(path / "labels.npy"),
        tags=cache_files.mapped(path / "tags.bin", "int32") if (path / "tags.bin").exists() else None,
        chars=cache_files.mapped(path / "chars.bin", "int32").reshape(-1, 2) if (path / "chars.bin").exists() else None,
        row=np.load(path / "row.npy"),
        counts=report["counts"],
        max_id=report["max_id"],
        max_type=report["max_type"],
        bad=tuple((where, reason) for where, reason in bad),
        dropped=tuple((where, reason) for where, reason in dropped),
        fingerprint=identity,
    )


def _write(split: Split, example: Callable[[Mapping[str, Any]], Any], encode: Encode, path: Path) -> None:
    with disk.writing(path.parent), atomic.building(path.parent) as aside:
        # The tokenizer releases the interpreter: while it works on one chunk, the next is read and the last written.
        with TokenWriter(aside, split) as writer, ThreadPoolExecutor(1) as pool:
            waiting = None
            for chunk in _chunks(split, example, writer):
                coming = pool.submit(encode, chunk.texts)
                if waiting:
                    writer.add(waiting[0], waiting[1].result())
                waiting = (chunk, coming)
            if waiting:
                writer.add(waiting[0], waiting[1].result())
            writer.finish()
        cache_files.seal(aside)
        atomic.publish(aside, path)


def _chunks(split: Split, example: Callable[[Mapping[str, Any]], Any], writer: TokenWriter) -> Iterator[Chunk]:
    chunk = Chunk()
    for index in range(len(split.rows)):
        try:
            made = example(split.rows[index])
            chunk.append(index, made if isinstance(made, list) else [made])
        except BadRow as error:
            writer.reject(split.where(index), str(error))
        if len(chunk.rows) >= CHUNK:
            yield chunk
            chunk = Chunk()
    if chunk.rows:
        yield chunk
