"""Duplicates: of equal documents the first stays, and of near-equal ones about the first.

Near: MinHash signatures of the sets of word n-grams (Broder 1997), cut into bands; documents that agree in a whole band
share a bucket (Leskovec et al., Mining of Massive Datasets, section 3.4). In a bucket a document goes if its signature
agrees in enough places with that of an earlier one that did not go there. So no two documents that stay share a bucket
and agree, and what stays depends on the order in the corpus alone: buckets can be looked at one by one, by anybody.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.corpora.document import UNSPACED, hashed, ngrams
from jaxft.registry import UserError

_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")


@dataclass(frozen=True)
class Near:
    """ngram: words (in scripts without spaces: characters) in a row that are compared; bands, rows: a signature has
    bands * rows numbers; threshold: share of them that must be equal, which estimates the Jaccard similarity of the
    sets of n-grams.

    Documents of similarity s share a bucket with probability 1 - (1 - s^rows)^bands: about half of them at
    (1 / bands)^(1 / rows).
    """

    ngram: int
    bands: int
    rows: int
    threshold: float

    def __post_init__(self) -> None:
        for name in ("ngram", "bands", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"duplicates.{name}={getattr(self, name)} must be 1 or more")
        if not 0 < self.threshold <= 1:
            raise UserError(f"duplicates.threshold={self.threshold} must be above 0 and at most 1")

    @property
    def size(self) -> int:
        return self.bands * self.rows

    def shingles(self, text: str) -> np.ndarray:
        """A number for each n-gram of the text's words, in lower case and without marks, uint32; fewer are one.

        A text without words is one itself: or all of them would be alike.
        """
        hashes_W = hashed(_WORD.findall(text.casefold()) or [text])
        found = ngrams(hashes_W, min(self.ngram, len(hashes_W)))
        return (np.unique(found) >> np.uint64(32)).astype(np.uint32)

    def signature(self, text: str) -> np.ndarray:
        """uint32 [bands * rows]."""
        minhash = _minhash(self.size)
        minhash.update_batch(self.shingles(text).tolist())
        return np.asarray(minhash.digest(), np.uint32)

    def buckets(self, signatures_XK: np.ndarray) -> Iterator[np.ndarray]:
        """For each band the bucket of each document, uint64 [X]."""
        for band in range(self.bands):
            part_XR = signatures_XK[:, band * self.rows : (band + 1) * self.rows].astype(np.uint64)
            yield ngrams_of_rows(part_XR, band)

    def followers(self, signatures_XK: np.ndarray) -> Iterator[tuple[int, int]]:
        """(document that goes, the earlier one it agrees with) of a bucket with its documents in the corpus's order."""
        left = np.arange(len(signatures_XK))
        while len(left) > 1:
            first, rest = int(left[0]), left[1:]
            agree = (signatures_XK[rest] == signatures_XK[first]).mean(1) >= self.threshold
            for one in rest[agree]:
                yield int(one), first
            left = rest[~agree]


def ngrams_of_rows(part_XR: np.ndarray, band: int) -> np.ndarray:
    """A number for each row and the band, uint64 [X]."""
    of_band = np.full((len(part_XR), 1), band, np.uint64)
    columns = np.concatenate([of_band, part_XR], axis=1).T
    out = columns[0].copy()
    for column in columns[1:]:
        out = (out ^ column) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def near_duplicates(near: Near, signatures_XK: np.ndarray, alive_X: np.ndarray) -> np.ndarray:
    """For each document the earlier one because of which it goes, -1: it stays; int64 [X].

    alive: who takes part. Memory: a few numbers a document beside the signatures, which may be mapped.
    """
    leader_X = np.full(len(signatures_XK), -1, np.int64)
    numbers = np.flatnonzero(alive_X)
    for bucket_X in near.buckets(signatures_XK):
        bucket_A = bucket_X[numbers]
        order = np.argsort(bucket_A, kind="stable")
        edges = np.flatnonzero(np.diff(bucket_A[order])) + 1
        starts, ends = np.concatenate([[0], edges]), np.append(edges, len(order))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            members = numbers[order[start:end]]
            for gone, first in near.followers(np.asarray(signatures_XK[members])):
                one, other = members[gone], members[first]
                if leader_X[one] < 0 or other < leader_X[one]:
                    leader_X[one] = other
    return leader_X


def exact_duplicates(digests_X2: np.ndarray) -> np.ndarray:
    """For each document the first one that is equal to it, -1: it is the first; int64 [X]. Digests: uint64 [X, 2]."""
    order = np.lexsort((np.arange(len(digests_X2)), digests_X2[:, 1], digests_X2[:, 0]))
    ordered = digests_X2[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    firsts = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(order) else order
    leader_X = np.full(len(order), -1, np.int64)
    leader_X[order[~new]] = firsts[~new]
    return leader_X


def root(leader_X: np.ndarray, one: int) -> int:
    """The document that stays for `one`, which goes."""
    while leader_X[one] >= 0:
        one = int(leader_X[one])
    return one


def _minhash(size: int) -> Any:
    """A signature of `size` numbers of the empty set. The scheme is named, so that no other release means another."""
    from datasketch import MinHash

    return MinHash(size, hashfunc=int, permutations=_permutations(size), scheme="affine32")


@functools.cache
def _permutations(size: int) -> Any:
    from datasketch import MinHash

    return MinHash(size, seed=1, scheme="affine32").permutations
