"""Parameters -> a Hugging Face folder, streamed: host memory holds one parameter's layer at a time.

    with replacing(folder, beside=("config.json",)) as temporary:  # nothing is seen of a folder that is not complete
        save(temporary, params, table, dtype="float32")
        save_json(temporary, "config.json", {...})

The files are written here rather than by the safetensors library, which needs a whole shard in memory and stores a
transposed array wrongly without a word.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft import atomic
from jaxft.hf import files
from jaxft.hf.layout import Row, Table, copy, parts, rows
from jaxft.hf.load import flatten
from jaxft.registry import UserError, nearest

DTYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", jnp.bfloat16), "float16": ("F16", np.float16)}

# "format": what transformers requires; "writer": how `replacing` knows a folder that it may replace.
METADATA = {"format": "pt", "writer": "jaxft"}


@dataclass(frozen=True)
class _Tensor:
    """One hub tensor to be written, and the parameters that it is made of, at `index` of their stacked axes."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    index: tuple[int, ...]


def save(
    folder: Path,
    params: Mapping[str, Any],
    table: Table,
    *,
    dtype: str,
    shard_bytes: int = 5_000_000_000,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """Writes `params` as safetensors into `folder`, in files of `shard_bytes` at most, and returns the files' names.

    `dtype` is float32, bfloat16 or float16. `shapes` are those of parameters that are smaller on disk than here. With
    several processes all must call it, since each array is gathered; the first writes. Raises UserError for an unknown
    dtype, a disk that is too small, and a value that overflows float16.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; known: {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
    itemsize = np.dtype(DTYPES[dtype][1]).itemsize
    flat, table_rows = flatten(params), rows(table)
    if strangers := set(flat) ^ set(table_rows):
        raise ValueError(f"table and parameters differ in: {', '.join(sorted(strangers))}")
    shapes = {path: param.shape for path, param in flat.items()} | dict(shapes or {})
    plan = _plan(shapes, table_rows, itemsize, shard_bytes)
    total = sum(math.prod(tensor.shape) for shard in plan.values() for tensor in shard) * itemsize
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, total)
    for name, shard in plan.items():
        with (folder / name).open("wb") if writes else contextlib.nullcontext() as stream:
            _write(stream, shard, flat, shapes, table_rows, dtype)
    if writes and len(plan) > 1:
        weight_map = {tensor.name: name for name, shard in plan.items() for tensor in shard}
        save_json(folder, files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return list(plan)


def _plan(
    shapes: Mapping[str, tuple[int, ...]], table: Mapping[str, Row], itemsize: int, shard_bytes: int
) -> dict[str, list[_Tensor]]:
    """File name -> its tensors, in the table's order. A tensor larger than `shard_bytes` gets a file of its own."""
    shards: list[list[_Tensor]] = [[]]
    used = 0
    places = parts(table, shapes)
    sharing: dict[str, list[str]] = {}
    for path, row in table.items():
        sharing.setdefault(row.name, []).append(path)
    for paths in sharing.values():
        row, whole, shape = table[paths[0]], places[paths[0]].whole, shapes[paths[0]]
        size = math.prod(whole) * itemsize
        indices = {name: index for index, name in row.tensors(shape)}
        indices |= {copy: indices[of] for copy, of in row.copies(shape)}
        for name, index in indices.items():
            if shards[-1] and used + size > shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append(_Tensor(name, whole, tuple(paths), index))
            used += size
    if len(shards) == 1:
        return {files.SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write(
    stream: Any,
    shard: list[_Tensor],
    flat: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    table: Mapping[str, Row],
    dtype: str,
) -> None:
    """Header, then the bytes of tensor after tensor. `stream` is None in a process that only helps to gather."""
    code, kind = DTYPES[dtype]
    if stream is not None:
        stream.write(header({tensor.name: tensor.shape for tensor in shard}, code, np.dtype(kind).itemsize))
    for tensor in shard:
        pieces = [gather(flat[path], tensor.index) for path in tensor.paths]
        if stream is not None:
            kept = [shapes[path][len(tensor.index) :] for path in tensor.paths]
            own = [piece[tuple(map(slice, shape))] for piece, shape in zip(pieces, kept, strict=True)]
            stream.write(_on_disk(own, [table[path] for path in tensor.paths], tensor.name, kind).data)
    if stream is not None:
        stream.flush()
        os.fsync(stream.fileno())


def header(shapes: Mapping[str, tuple[int, ...]], code: str, itemsize: int) -> bytes:
    """What a file of tensors of one dtype begins with; they follow one another in that order."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * itemsize
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensors aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text


def gather(param: Any, index: tuple[int, ...]) -> np.ndarray:
    """One layer of a parameter, whole, on this host."""
    one = param[index] if index else param
    if jax.process_count() == 1:
        return np.asarray(one)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(one, tiled=True))


def _on_disk(pieces: list[np.ndarray], rows: list[Row], name: str, kind: Any) -> np.ndarray:
    """Bytes of the tensor that `pieces` join into, in disk order and dtype, as uint8."""
    views = [row.layout.to_disk(piece) for row, piece in zip(rows, pieces, strict=True)]
    whole = np.concatenate(views, rows[0].layout.joined) if len(views) > 1 else views[0]
    exact = np.empty(whole.shape, whole.dtype)
    copy(exact, whole)
    with np.errstate(over="ignore"):  # reported below, by name
        cast = exact.astype(kind)
    if kind is np.float16 and (np.isinf(cast) & np.isfinite(exact)).any():
        raise UserError(f"dtype='float16': {name} has values beyond 65504, which float16 cannot hold; use bfloat16")
    return cast.reshape(-1).view(np.uint8)


def _check_space(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"{folder}: the weights need {needed:,} bytes and the disk has {free:,} free; nothing was written"
        )


def save_json(folder: Path, name: str, value: Mapping[str, Any] | list[Any]) -> None:
    """`value` as `name` in `folder`, in the way of transformers: sorted keys, indented by two."""
    with (folder / name).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing(folder: Path, *, beside: Collection[str]) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends without an exception.

    So a reader finds the old export or the new one, never half of one. Raises UserError where `folder` holds anything
    but an earlier export of jaxft: its weights, and files named in `beside`. Only the first process creates and moves;
    the others get a path they must not use.
    """
    folder = folder.absolute()
    temporary, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    if jax.process_index() != 0:
        yield temporary
        return
    if old.exists() and not folder.exists():  # an earlier process died between the two renames below
        old.rename(folder)
    _check_replaceable(folder, beside)
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        atomic.sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path, beside: Collection[str]) -> None:
    """An export may replace an empty folder or an earlier export, never somebody's files, not even beside ours."""
    if not folder.exists():
        return
    held = _entries(folder, beside) if folder.is_dir() else {folder.name: folder}
    weights = [name for name, file in held.items() if _WEIGHTS.fullmatch(name) and _is_ours(file)]
    strangers = [name for name, file in held.items() if name not in (*weights, *beside) or not file.is_file()]
    if held and (strangers or not weights):
        names = ", ".join(strangers or held)
        raise UserError(
            f"{folder} holds what is not an earlier export of jaxft: {names}; choose another folder or empty it"
        )


def _entries(folder: Path, beside: Collection[str]) -> dict[str, Path]:
    """Name -> path of what is in a folder, and in those of its folders that files of `beside` are in."""
    inner = {name.rpartition("/")[0] for name in beside}
    found = []
    for entry in sorted(folder.iterdir()):
        found += sorted(entry.iterdir()) if entry.name in inner and entry.is_dir() else [entry]
    return {entry.relative_to(folder).as_posix(): entry for entry in found}


_WEIGHTS = re.compile(
    rf"model(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(files.INDEX)}"
    r"|adapter_model\.safetensors|adapter\.safetensors|model_head\.safetensors"  # adapters, of either library
)


def _is_ours(file: Path) -> bool:
    if not file.is_file():
        return False
    if file.name == files.INDEX:
        return True
    try:
        return files.header(file, str(file))[1].get("writer") == METADATA["writer"]
    except UserError:  # not even a file of tensors: somebody else's
        return False


def _sync(folder: Path) -> None:
    """Makes the files of `folder`, and their names, survive a power cut."""
    for entry in folder.iterdir():
        if entry.is_dir():
            _sync(entry)
            continue
        atomic.sync(entry)
    atomic.sync(folder)
