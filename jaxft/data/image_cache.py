"""The image cache: a split's images, decoded and resized once, and memory-mapped ever after. See tokens.py."""

import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import atomic, disk
from jaxft.data import cache_files
from jaxft.data.source import Split, fingerprint, refuse_bad
from jaxft.data.token_writer import REPORTED, label_array
from jaxft.registry import BadRow

CODE_VERSION = 1  # raise it when the same image gives other pixels or another layout
AHEAD = 64  # images on their way through the threads


@dataclass(frozen=True)
class ImageCache:
    """pixels: uint8 [X, rows, columns, channels]; the rest as in a TokenCache."""

    pixels: np.ndarray
    labels: np.ndarray
    row: np.ndarray
    counts: dict[str, int]
    fingerprint: str
    folder: Path
    bad: list[tuple[str, str]]  # (where, reason) of the first rows that cannot be used


def build(
    split: Split,
    example: Callable[[Mapping[str, Any]], Any],
    pixels: Callable[[Any], np.ndarray],
    *,
    shape: tuple[int, int, int],
    key: dict[str, str],
    folder: str,
    on_bad: str,
) -> ImageCache:
    """The cache of `split` below `folder`, read if it is there and whole, built otherwise.

    example: row -> object with .image and .label; pixels: image -> uint8 of `shape`. Both raise BadRow.
    key, on_bad: as for tokens.build.
    """
    identity = fingerprint(source=split.fingerprint, code=CODE_VERSION, key=key)
    # Another release of Pillow may decode the same file otherwise: it has a cache of its own, but may go on with a run.
    path = Path(folder) / fingerprint(identity=identity, place=split.place, pillow=version("pillow"))
    if not (path.exists() and _whole(path)):
        _write(split, example, pixels, path)
    report = json.loads((path / "report.json").read_text())
    bad = json.loads((path / "bad_rows.json").read_text())
    refuse_bad(report["counts"], bad, path, on_bad)
    return ImageCache(
        pixels=cache_files.mapped(path / "pixels.bin", "uint8").reshape(-1, *shape),
        labels=np.load(path / "labels.npy"),
        row=np.load(path / "row.npy"),
        counts=report["counts"],
        fingerprint=identity,
        folder=path,
        bad=bad,
    )


def _whole(path: Path) -> bool:
    """Whether nothing is damaged; what is, is said aloud and removed."""
    if fault := cache_files.fault(path):
        print(f"jaxft: the image cache {path} is damaged ({fault}); building it again", file=sys.stderr, flush=True)
        shutil.rmtree(path, ignore_errors=True)
    return not fault


def _write(split: Split, example: Callable[..., Any], pixels: Callable[[Any], np.ndarray], path: Path) -> None:
    rows, labels, bad = [], [], list(split.bad)
    with disk.writing(path.parent), atomic.building(path.parent) as aside:
        with open(aside / "pixels.bin", "wb") as out:
            for index, label, made in _made(split, example, pixels):
                if isinstance(made, BadRow):
                    bad.append((split.where(index), str(made)))
                    continue
                out.write(np.ascontiguousarray(made).data)
                rows.append(index)
                labels.append(label)
        np.save(aside / "row.npy", np.array(rows, np.int64))
        np.save(aside / "labels.npy", label_array(labels, split.where(rows[0]) if rows else ""))
        counts = {"rows": len(split.rows) + len(split.bad), "kept": len(rows), "bad": len(bad)}
        (aside / "report.json").write_text(json.dumps({"counts": counts}, indent=1))
        (aside / "bad_rows.json").write_text(json.dumps(bad[:REPORTED], indent=1, ensure_ascii=False))
        cache_files.seal(aside)
        atomic.publish(aside, path)


def _made(
    split: Split, example: Callable[..., Any], pixels: Callable[[Any], np.ndarray]
) -> Iterator[tuple[int, Any, np.ndarray | BadRow]]:
    """(index, label, pixels or why there are none) of every row, in order; Pillow releases the interpreter."""

    def one(index: int) -> tuple[int, Any, np.ndarray | BadRow]:
        try:
            made = example(split.rows[index])
            return index, made.label, pixels(made.image)
        except BadRow as reason:
            return index, None, reason

    waiting: deque[Future[tuple[int, Any, np.ndarray | BadRow]]] = deque()
    with ThreadPoolExecutor() as pool:
        for index in range(len(split.rows)):
            waiting.append(pool.submit(one, index))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
