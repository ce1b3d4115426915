"""Packing: which examples share a row. A plan made up front from the lengths, so that no iterator hides state."""

from dataclasses import dataclass

import numpy as np

# Open rows kept for examples to come. With more, every example meets a better fit; at 1,024 the fill on real lengths is
# within 0.1 % of an unbounded window, while time and memory stay flat.
WINDOW = 1024


@dataclass(frozen=True)
class Plan:
    """Row r holds examples[offsets[r] : offsets[r + 1]], in this order.

    examples: int64 [X], each index of the token cache once; offsets: int64 [rows + 1]; fill: share of the tokens of
    all rows that are not padding; max_segments: most examples a row may hold. begins: int64 [groups + 1], where
    examples come in groups that share a row: group g is begins[g] to begins[g + 1] - 1 of the token cache.
    """

    examples: np.ndarray
    offsets: np.ndarray
    fill: float
    max_segments: int
    begins: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def examples_per_row(self) -> float:
        return len(self.examples) / max(self.rows, 1)


def plan(lengths_X: np.ndarray, *, row_length: int, max_segments: int, seed: int) -> Plan:
    """Packs examples into rows of `row_length` tokens, at most `max_segments` in each: best fit in a shuffled order.

    max_segments = 1 is no packing: one example a row, in their own order. The same arguments give the same plan.
    Raises ValueError for an example of no tokens or of more than `row_length`.
    """
    if max_segments < 1:
        raise ValueError(f"max_segments={max_segments} must be at least 1")
    lengths_X = np.asarray(lengths_X, np.int64)
    wrong = np.flatnonzero((lengths_X < 1) | (lengths_X > row_length))
    if len(wrong):
        raise ValueError(f"example {wrong[0]} has {lengths_X[wrong[0]]} tokens; a row takes 1 to {row_length}")
    if max_segments == 1:
        examples, counts = np.arange(len(lengths_X)), np.ones(len(lengths_X), np.int64)
    else:
        order = np.random.default_rng(seed).permutation(len(lengths_X))
        row_X = _best_fit(lengths_X[order].tolist(), row_length, max_segments)
        examples = order[np.argsort(row_X, kind="stable")]
        counts = np.bincount(row_X)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    fill = float(lengths_X.sum() / max(len(counts) * row_length, 1))
    return Plan(examples, offsets, fill, max_segments)


def plan_groups(lengths_X: np.ndarray, begins: np.ndarray, *, row_length: int, max_groups: int, seed: int) -> Plan:
    """As `plan`, of groups of examples that stay together, at most `max_groups` in a row. `begins` as in Plan."""
    sizes = np.diff(begins)
    of_group = np.add.reduceat(lengths_X, begins[:-1]) if len(sizes) else np.zeros(0, np.int64)
    made = plan(of_group, row_length=row_length, max_segments=max_groups, seed=seed)
    size_E = sizes[made.examples]
    first_E = np.cumsum(size_E) - size_E
    within = np.arange(size_E.sum()) - np.repeat(first_E, size_E)
    return Plan(
        examples=np.repeat(begins[made.examples], size_E) + within,
        offsets=np.append(first_E, size_E.sum())[made.offsets],
        fill=made.fill,
        max_segments=max_groups * int(sizes.max(initial=1)),
        begins=begins,
    )


def _best_fit(lengths: list[int], row_length: int, max_segments: int) -> np.ndarray:
    """Row of each example, int64 [X]: the open row with the least room that is enough, else a new one.

    Open rows are kept in one stack per room left; bit c of `mask` says that stack c is not empty. So the best fit is
    the lowest set bit from `length` up: constant time an example. A full window closes the row with the least room.
    """
    stacks: list[list[int]] = [[] for _ in range(row_length + 1)]
    mask, opened, rows = 0, 0, 0
    shortest = min(lengths, default=0)
    held: list[int] = []  # examples in each row
    result = []
    for length in lengths:
        fitting = mask >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = stacks[room]
            row = stack.pop()
            opened -= 1
            if not stack:
                mask ^= 1 << room
        else:
            room, row = row_length, rows
            rows += 1
            held.append(0)
        result.append(row)
        held[row] += 1
        room -= length
        if room < shortest or held[row] == max_segments:
            continue
        stacks[room].append(row)
        mask |= 1 << room
        opened += 1
        if opened > WINDOW:
            fullest = (mask & -mask).bit_length() - 1
            stacks[fullest].pop()
            opened -= 1
            if not stacks[fullest]:
                mask ^= 1 << fullest
    return np.asarray(result, np.int64)
