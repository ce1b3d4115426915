"""Entities in tags of words, and their precision, recall and F1, counted per type so that batches add up.

A tag is O or a prefix and a type: B-LOC begins an entity, I-LOC goes on, E-LOC ends it, S-LOC is one alone. The rules
are those of the CoNLL 2000 evaluation script and of seqeval, whose scores these equal.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxft.metrics import multilabel

TAG = re.compile(r"O|([BIES])-(.+)")
BARE = frozenset("BIOES")


def are_entities(classes: Sequence[str]) -> bool:
    """Whether these classes are tags of entities, some of them with a prefix; without types: B, I and O alone."""
    if set(classes) - {"O"} and "O" in classes and BARE.issuperset(classes):
        return True
    found = [TAG.fullmatch(name) for name in classes]
    return all(found) and any(match and match[1] for match in found)


def proper(classes: Sequence[str]) -> tuple[str, ...]:
    """`classes` without those that are no tags of entities, where most are: a B_LOC among B-LOC and O is a slip."""
    tags = tuple(name for name in classes if TAG.fullmatch(name))
    return tags if "O" in tags and 2 * len(tags) > len(classes) and are_entities(tags) else tuple(classes)


class Entities(NamedTuple):
    """Entity e is the words begin[e] to end[e] - 1 and of type kind[e]; int64 [entities] each."""

    begin: np.ndarray
    end: np.ndarray
    kind: np.ndarray


class Tags:
    """What each class means. `kinds` are the types, in order."""

    def __init__(self, classes: Sequence[str]):
        parted = [name.partition("-") for name in classes]
        self.kinds = tuple(sorted({kind for prefix, _, kind in parted if prefix != "O"}))
        self._prefix_C = np.array([prefix for prefix, _, _ in parted])
        self._kind_C = np.array([-1 if p == "O" else self.kinds.index(kind) for p, _, kind in parted])
        # With E or S among the tags an entity has to end in one of them.
        self._ends = bool({"E", "S"} & {prefix for prefix, _, _ in parted})

    def entities(self, tag_W: np.ndarray, first_W: np.ndarray) -> Entities:
        """Of classes [W] of words; `first_W` says where a sentence begins. Every word that is not O is in an entity.

        So tags that do not fit are mended: I-LOC behind O or behind another type begins an entity.
        """
        prefix_W, kind_W, before_W, kind_before_W = self._neighbours(tag_W, first_W)
        changed_W = kind_before_W != kind_W
        tagged_W = prefix_W != "O"
        begins_W = np.isin(prefix_W, ["B", "S"]) | (tagged_W & np.isin(before_W, ["E", "S", "O"]))
        begins_W |= tagged_W & changed_W
        ends_W = np.isin(before_W, ["E", "S"]) | (np.isin(before_W, ["B", "I"]) & np.isin(prefix_W, ["B", "S", "O"]))
        ends_W |= (before_W != "O") & changed_W
        return self._spans(begins_W, ends_W | first_W, kind_W)

    def strict_entities(self, tag_W: np.ndarray, first_W: np.ndarray) -> Entities:
        """As `entities`, of whole ones alone: begun by B, gone on with by I of the same type; with E and S ended."""
        prefix_W, kind_W, before_W, kind_before_W = self._neighbours(tag_W, first_W)
        inside_W = np.isin(before_W, ["B", "I"]) & np.isin(prefix_W, ["I", "E"]) & (kind_before_W == kind_W)
        found = self._spans(np.isin(prefix_W, ["B", "S"]), ~inside_W, kind_W)
        if not self._ends:
            return found
        whole = np.isin(prefix_W[found.end - 1], ["E", "S"])
        return Entities(*(column[whole] for column in found))

    def _neighbours(self, tag_W: np.ndarray, first_W: np.ndarray) -> tuple[np.ndarray, ...]:
        """Prefix and type of each word and of the word before it, which is O where a sentence begins."""
        prefix_W, kind_W = self._prefix_C[tag_W], self._kind_C[tag_W]
        before_W, kind_before_W = np.roll(prefix_W, 1), np.roll(kind_W, 1)
        return prefix_W, kind_W, np.where(first_W, "O", before_W), np.where(first_W, -1, kind_before_W)

    def _spans(self, begins_W: np.ndarray, ends_W: np.ndarray, kind_W: np.ndarray) -> Entities:
        """`ends_W`: what goes on before a word ends there."""
        begin = np.flatnonzero(begins_W)
        stops = np.append(np.flatnonzero(ends_W), len(ends_W))
        return Entities(begin, stops[np.searchsorted(stops, begin, side="right")], kind_W[begin])


def count(truth: Entities, found: Entities, kinds: int) -> np.ndarray:
    """int64 [kinds, 2, 2] as multilabel.py takes it: [1, 1] found, [1, 0] missed, [0, 1] found where there is none."""
    size = int(max(truth.end.max(initial=0), found.end.max(initial=0))) + 1
    keys_truth, keys_found = ((one.begin * size + one.end) * kinds + one.kind for one in (truth, found))
    hits = np.isin(keys_found, keys_truth)
    counts_K22 = np.zeros((kinds, 2, 2), np.int64)
    counts_K22[:, 1, 1] = np.bincount(found.kind[hits], minlength=kinds)
    counts_K22[:, 0, 1] = np.bincount(found.kind[~hits], minlength=kinds)
    counts_K22[:, 1, 0] = np.bincount(truth.kind, minlength=kinds) - counts_K22[:, 1, 1]
    return counts_K22


def precision(counts_K22: np.ndarray) -> float:
    """Share of the entities found that are there."""
    return multilabel.averages(counts_K22, "micro")["precision"]


def recall(counts_K22: np.ndarray) -> float:
    """Share of the entities that were found."""
    return multilabel.averages(counts_K22, "micro")["recall"]


def f1(counts_K22: np.ndarray) -> float:
    """F1 of all entities together."""
    return multilabel.averages(counts_K22, "micro")["f1"]
