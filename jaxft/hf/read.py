"""One parameter from its tensors on disk: each byte is read once, whoever needs it, and goes to every shard of it.

Files are read into a few warm buffers. A memory map would be faulted in page by page, and once more for each device
that needs some columns of every row (docs/results.md has both figures).
"""

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.hf.files import Stored
from jaxft.hf.layout import Part, Row, copy

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}

READERS = 4
ALIGNED = 64  # bytes, as XLA's own buffers
PIECE = 16 * 2**20  # bytes that a reader holds, if one row of a tensor is not larger

Index = tuple[int, ...]
Spans = tuple[tuple[int, int], ...]  # begin and end in each axis of a parameter


def parameter(leaf: Any, shape: tuple[int, ...], row: Row, part: Part, tensors: Mapping[Index, Stored]) -> jax.Array:
    """The array that `leaf` describes, of `shape` on disk and zero beyond that.

    Host memory holds the shards of this process's devices, equal ones once, and READERS pieces.
    """
    places = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    shards = {spans: _new(spans, leaf.dtype) for spans in {_spans(place, leaf.shape) for place in places}}
    stacked = len(row.stacked)
    local = threading.local()

    def fill(job: tuple[Index, int, int]) -> None:
        at, begin, end = job
        block = rows_of(tensors[at], begin, end, local)
        for spans, out in shards.items():
            if all(first <= i < last for i, (first, last) in zip(at, spans, strict=False)):
                place = tuple(i - first for i, (first, _) in zip(at, spans, strict=False))
                _into(out[place], spans[stacked:], shape[stacked:], row, part, block, begin)

    wanted = sorted({at for spans in shards for at in product(*(range(*span) for span in spans[:stacked]))})
    jobs = [job for at in wanted for job in _pieces(at, tensors[at], shards, shape, row, part)]
    with ThreadPoolExecutor(READERS) as pool:  # numpy and the system's reads give up the interpreter's lock
        list(pool.map(fill, jobs))
    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda place: shards[_spans(place, leaf.shape)])
    return jax.block_until_ready(array)  # or the shards of several parameters would wait in host memory


def _new(spans: Spans, dtype: Any) -> np.ndarray:
    """Zeros, aligned so that a CPU device takes them as they lie instead of copying them."""
    shape = [end - begin for begin, end in spans]
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.zeros(size + ALIGNED, np.uint8)  # of fresh pages, which cost nothing until they are written to
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def rows_of(tensor: Stored, begin: int, end: int, local: Any = None) -> np.ndarray:
    """Rows `begin` to `end` of a tensor; valid until the same thread reads again with the same `local`."""
    dtype = DTYPES[tensor.dtype]
    shape = (end - begin, *tensor.shape[1:])
    row_bytes = int(np.prod(tensor.shape[1:], dtype=np.int64)) * dtype.itemsize
    size = (end - begin) * row_bytes
    buffer: Any = getattr(local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if local is not None:
            local.buffer = buffer
    view, done = memoryview(buffer)[:size], 0
    with open(tensor.file, "rb", buffering=0) as file:
        while done < size:
            count = os.preadv(file.fileno(), [view[done:]], tensor.offset + begin * row_bytes + done)
            if not count:
                raise OSError(f"{tensor.file} ended while it was read")
            done += count
    return buffer[:size].view(dtype).reshape(shape)


def _spans(place: Any, shape: tuple[int, ...]) -> Spans:
    return tuple(one.indices(size)[:2] for one, size in zip(place, shape, strict=True))


def _on_disk(spans: Spans, shape: tuple[int, ...], row: Row, part: Part) -> tuple[slice, ...]:
    """Where the part of a shard that there is on disk lies in its tensor."""
    there = [slice(min(begin, size), min(end, size)) for (begin, end), size in zip(spans, shape, strict=True)]
    return part.of(row, row.layout.disk_index(there))


def _pieces(
    at: Index, tensor: Stored, shards: Mapping[Spans, Any], shape: tuple[int, ...], row: Row, part: Part
) -> Iterator[tuple[Index, int, int]]:
    """The rows of a tensor that some shard needs, PIECE at a time."""
    stacked = len(at)
    needed = [_on_disk(spans[stacked:], shape[stacked:], row, part)[0] for spans in shards]
    row_bytes = max(1, int(np.prod(tensor.shape[1:], dtype=np.int64)) * DTYPES[tensor.dtype].itemsize)
    step = max(1, PIECE // row_bytes)
    for begin in range(min(rows.start for rows in needed), max(rows.stop for rows in needed), step):
        end = min(begin + step, max(rows.stop for rows in needed))
        if any(rows.start < end and begin < rows.stop for rows in needed):
            yield at, begin, end


def _into(
    out: np.ndarray, spans: Spans, shape: tuple[int, ...], row: Row, part: Part, block: np.ndarray, first: int
) -> None:
    """What a shard needs of `block`, the rows of a tensor from `first` on."""
    rows, *others = _on_disk(spans, shape, row, part)
    begin, end = max(rows.start, first), min(rows.stop, first + len(block))
    if begin >= end:
        return
    view = row.layout.to_param(block[(slice(begin - first, end - first), *others)])
    inside = [slice(0, size) for size in view.shape]
    axis = row.layout.param.index(row.layout.disk[0])
    inside[axis] = slice(begin - rows.start, end - rows.start)
    copy(out[tuple(inside)], view)
