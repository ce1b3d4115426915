"""Rows of pairs: sources in one row, their targets in another, each with a token cache and a length of its own.

One plan says which pairs share a row. Segment s of a row's target answers segment s of its source.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxft.data import pack, pipeline
from jaxft.data.pack import Plan
from jaxft.data.pipeline import Batch, Share
from jaxft.data.tokens import TokenCache
from jaxft.labels import NO_LABEL


@dataclass(frozen=True)
class Pairs:
    """Example x is source x and target x. `plan` names the pairs that are used; rows have so many tokens each."""

    sources: TokenCache
    targets: TokenCache
    plan: Plan
    length: int
    target_length: int
    start_id: int  # what the decoder reads first

    def assemble(self, rows_B: np.ndarray) -> Batch:
        """The batch of these rows of the plan (pipeline.EMPTY = a row without pairs).

        ids, segment, position: int32 [B, L] of the sources. target_ids: int32 [B, T], of each target what the decoder
        reads: start_id, then all but its last token; target_segment, target_position. label: the targets, NO_LABEL
        where there is none, weight: 1 where there is one. example: index of each pair, int32 [B, S], -1 where there is
        none.
        """
        source = pipeline.assemble(self.sources, self.plan, rows_B, self.length)
        target = pipeline.assemble(self.targets, self.plan, rows_B, self.target_length)
        there_BT = target["segment"] > 0
        before_BT = np.where(target["position"] == 0, self.start_id, np.roll(target["ids"], 1, axis=1))
        return {name: source[name] for name in ("ids", "segment", "position", "example")} | {
            "target_ids": np.where(there_BT, before_BT, 0).astype(np.int32),
            "target_segment": target["segment"],
            "target_position": target["position"],
            "label": np.where(there_BT, target["ids"], NO_LABEL).astype(np.int32),
            "weight": there_BT.astype(np.float32),
        }

    def batches(self, *, batch: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """As pipeline.batches, shuffled."""
        local = share.rows(batch)

        def make(step: int, rows_B: np.ndarray) -> Batch:
            return self.assemble(rows_B[local])

        return pipeline.stream(self.plan.rows, make, batch=batch, seed=seed, start=start, shuffle=True)

    def eval_batches(self, *, batch: int, share: Share) -> Iterator[Batch]:
        """As pipeline.eval_batches."""
        local = share.rows(batch)
        for rows_B in pipeline.passing(self.plan.rows, batch):
            yield self.assemble(rows_B[local])

    @property
    def dropped(self) -> list[tuple[int, str]]:
        """(example, why) of the pairs that are in no row, because a side of them is longer."""
        sides = (("source", self.sources, self.length), ("target", self.targets, self.target_length))
        longer = {f"the {name} has more than {length} tokens": held.lengths > length for name, held, length in sides}
        either_X = np.logical_or(*longer.values())
        return [(x, " and ".join(why for why in longer if longer[why][x])) for x in np.flatnonzero(either_X).tolist()]

    @property
    def fill(self) -> tuple[float, float]:
        """Share of the tokens of all rows that are not padding, of sources and of targets."""
        used = self.plan.examples
        source, target = (
            float(cache.lengths[used].sum() / max(1, self.plan.rows * length))
            for cache, length in ((self.sources, self.length), (self.targets, self.target_length))
        )
        return source, target


def plan(
    source_X: np.ndarray, target_X: np.ndarray, *, length: int, target_length: int, max_segments: int, seed: int
) -> Plan:
    """Packs the pairs that fit into a row, of sources with `length` tokens and targets with `target_length`.

    A pair takes as much of a row as the side does that takes more of its own: what one row has room for, both have.
    """
    row = max(length, target_length)
    need_X = np.maximum(-(-source_X * row // length), -(-target_X * row // target_length))
    fitting = np.flatnonzero(need_X <= row)
    made = pack.plan(need_X[fitting], row_length=row, max_segments=max_segments, seed=seed)
    return Plan(fitting[made.examples], made.offsets, made.fill, made.max_segments)
