"""Batches of a token cache by a plan. Batch k is a pure function of (cache, plan, seed, k): position = step."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxft.data.pack import Plan
from jaxft.data.tokens import TokenCache
from jaxft.labels import NO_LABEL

Batch = dict[str, np.ndarray]
EMPTY = -1  # as a row number: a row without examples


@dataclass(frozen=True)
class Share:
    """Which rows of every global batch a process has: of the `of` equal blocks of its rows the `blocks`, ascending."""

    blocks: tuple[int, ...]
    of: int

    def rows(self, batch: int) -> np.ndarray:
        """Their places in a global batch of `batch` rows, int64. Raises ValueError where `of` does not divide it."""
        if batch % self.of:
            fitting = max(batch // self.of, 1) * self.of
            raise ValueError(f"batch={batch} is not divisible by the {self.of} blocks of rows; use {fitting}")
        return np.arange(batch).reshape(self.of, -1)[list(self.blocks)].reshape(-1)


WHOLE = Share((0,), 1)


def batches(
    tokens: TokenCache,
    plan: Plan,
    *,
    batch: int,
    row_length: int,
    seed: int,
    start: int,
    share: Share,
    shuffle: bool,
) -> Iterator[Batch]:
    """Endless batches from the `start`-th on: every row once an epoch, in a new order each epoch when `shuffle`.

    batch: rows of the global batch, of which this process gets its `share`, and reads no other. The global batch, even
    its row order, is the same for any number of processes. A batch may span two epochs.
    Raises ValueError when the batch cannot be shared out so.
    """
    local = share.rows(batch)

    def make(step: int, rows_B: np.ndarray) -> Batch:
        return assemble(tokens, plan, rows_B[local], row_length)

    return stream(plan.rows, make, batch=batch, seed=seed, start=start, shuffle=shuffle)


def stream(
    rows: int, make: Callable[[int, np.ndarray], Batch], *, batch: int, seed: int, start: int, shuffle: bool
) -> Iterator[Batch]:
    """Endless `make(k, rows of the global batch k)` for k = start, start + 1, ..."""
    import grain

    numbers = grain.MapDataset.range(rows).seed(seed)
    if shuffle:
        numbers = numbers.shuffle()
    # Shuffle and batch handle row numbers only; one vectorised function then makes the whole batch.
    dataset = numbers.repeat().batch(batch).map_with_index(make)
    batches = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
    batches.set_state({"next_index": start})
    return batches


def eval_batches(tokens: TokenCache, plan: Plan, *, batch: int, row_length: int, share: Share) -> Iterator[Batch]:
    """One pass in the plan's order. Empty rows fill the last batch, so every process has the same number of batches."""
    local = share.rows(batch)
    for rows_B in passing(plan.rows, batch):
        yield assemble(tokens, plan, rows_B[local], row_length)


def passing(rows: int, batch: int) -> Iterator[np.ndarray]:
    """The rows of each global batch of one pass, EMPTY where there are no more."""
    for first in range(0, rows, batch):
        numbers = np.arange(first, first + batch)
        yield np.where(numbers < rows, numbers, EMPTY)


def assemble(tokens: TokenCache, plan: Plan, rows_B: np.ndarray, row_length: int) -> Batch:
    """The batch of these rows of the plan (EMPTY = a row without examples), without Python code per example.

    ids, type, segment (0 = padding, 1.. = the row's examples), position (from 0 in each segment): int32 [B, L].
    first (index of each segment's first token), example (index into the cache, -1 = empty slot): int32 [B, S].
    weight (1 = example, 0 = empty slot): float32 [B, S]. label: [B, S] or [B, S, C], 0 in empty slots.
    Where words have labels: label int32 [B, L], -100 where none begins, weight float32 [B, L], and lost int32 [B, S],
    how many words of an example have no token. Where examples come in groups: group and part int32 [B, S], the number
    of each one's group, -1 in empty slots, and its own within the group. Where the characters of tokens are known:
    chars int32 [B, L, 2], -1 of tokens that have none, and row int32 [B, S].
    """
    B, L, S = len(rows_B), row_length, plan.max_segments
    count_B = np.where(rows_B == EMPTY, 0, plan.offsets[rows_B + 1] - plan.offsets[rows_B])
    row_E, slot_E, example_E = _examples(plan, rows_B, count_B)
    source_E = tokens.offsets[example_E]
    length_E = tokens.offsets[example_E + 1] - source_E
    before_E = np.cumsum(length_E) - length_E
    first_E = before_E - np.repeat(before_E[slot_E == 0], count_B[count_B > 0])  # from its row's start on

    position_T = _count_within(length_E)
    source_T = np.repeat(source_E, length_E) + position_T
    target_T = np.repeat(row_E * L + first_E, length_E) + position_T

    def tokens_BL(values_T: np.ndarray, empty: int = 0) -> np.ndarray:
        out = np.full((B * L, *values_T.shape[1:]), empty, np.int32)
        out[target_T] = values_T
        return out.reshape(B, L, *values_T.shape[1:])

    def slots_BS(values_E: np.ndarray, dtype: type | np.dtype, empty: int = 0) -> np.ndarray:
        out = np.full((B, S, *values_E.shape[1:]), empty, dtype)
        out[row_E, slot_E] = values_E
        return out

    batch = {
        "ids": tokens_BL(tokens.ids[source_T]),
        "type": tokens_BL(tokens.types[source_T]),
        "segment": tokens_BL(np.repeat(slot_E + 1, length_E)),
        "position": tokens_BL(position_T),
        "first": slots_BS(first_E, np.int32),
        "example": slots_BS(example_E, np.int32, empty=-1),
    }
    batch |= _groups(batch["example"], plan.begins)
    if tokens.chars is not None:
        batch["chars"] = tokens_BL(tokens.chars[source_T], empty=-1)
        batch["row"] = slots_BS(tokens.row[example_E], np.int32)
    label_BS = slots_BS(tokens.labels[example_E], tokens.labels.dtype)
    if tokens.tags is None:
        return batch | {"label": label_BS, "weight": slots_BS(np.ones(len(example_E)), np.float32)}
    label_BL = tokens_BL(tokens.tags[source_T], empty=NO_LABEL)
    return batch | {"label": label_BL, "weight": (label_BL != NO_LABEL).astype(np.float32), "lost": label_BS}


def _examples(plan: Plan, rows_B: np.ndarray, count_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, slot and number of the examples E of a batch, row after row; their tokens are T."""
    slot_E = _count_within(count_B)
    example_E = plan.examples[np.repeat(plan.offsets[rows_B], count_B) + slot_E]
    return np.repeat(np.arange(len(rows_B)), count_B), slot_E, example_E


def _groups(example_BS: np.ndarray, begins: np.ndarray | None) -> Batch:
    if begins is None:
        return {}
    group_BS = np.searchsorted(begins, example_BS, side="right") - 1  # -1 of an empty slot
    part_BS = np.where(example_BS >= 0, example_BS - begins[group_BS], 0)
    return {"group": group_BS.astype(np.int32), "part": part_BS.astype(np.int32)}


def _count_within(counts: np.ndarray) -> np.ndarray:
    """0, 1, .. within each group: [2, 3] -> [0, 1, 0, 1, 2]."""
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(starts, counts)


def digests(batch: Batch, share: Share) -> list[int]:
    """Of each of the share's blocks 64 bits that say what its rows hold and where in the global batch they stand."""
    arrays = {key: np.ascontiguousarray(batch[key]) for key in sorted(batch)}
    begun = hashlib.blake2b(digest_size=8)
    for key, array in arrays.items():
        begun.update(f"{key} {array.dtype.str} {array.shape[1:]} ".encode())
    places_B = share.rows(len(next(iter(arrays.values()))) // len(share.blocks) * share.of)
    found = []
    for row, place in enumerate(places_B.tolist()):
        state = begun.copy()
        state.update(place.to_bytes(8, "little"))
        for array in arrays.values():
            state.update(array[row : row + 1].data)
        found.append(int.from_bytes(state.digest(), "little"))
    size = len(found) // len(share.blocks)
    return [sum(found[first : first + size]) % 2**64 for first in range(0, len(found), size)]


def digest(blocks: Iterable[int]) -> str:
    """16 hex digits that identify a global batch, of all its blocks' digests: they add up, however it was cut."""
    return f"{sum(blocks) % 2**64:016x}"
