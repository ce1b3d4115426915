"""Text that repeats itself (Rae et al. 2021, "Gopher", table A1)."""

from collections.abc import Sequence

import numpy as np

from jaxft.corpora.document import Document, Removed, ngrams

TOP, DUPLICATE = 2, 5  # the shortest n-grams of the two kinds


def repetition(
    document: Document,
    *,
    lines: float,
    paragraphs: float,
    line_characters: float,
    paragraph_characters: float,
    top: Sequence[float],
    duplicates: Sequence[float],
) -> Document | Removed:
    """Limits of the shares of: lines and paragraphs that were there before, and of their characters.

    top: share of characters in the most frequent n-gram, for n = 2, 3, ... as many as there are limits.
    duplicates: share of characters in n-grams that were there before, for n = 5, 6, ...; characters in several such
        n-grams count once. The first time does not count.
    Characters are those of units (no white space); in scripts without spaces n words are 1.5 n characters.
    """
    for name, parts, share, characters in (
        ("lines", document.lines, lines, line_characters),
        ("paragraphs", document.paragraphs, paragraphs, paragraph_characters),
    ):
        count, size = repeated(parts)
        if count > share:
            return Removed(f"repeated {name}", f"{count:.2f}")
        if size > characters:
            return Removed(f"characters of repeated {name}", f"{size:.2f}")
    sizes_U = np.fromiter(map(len, document.units), np.int64, len(document.units))
    for kind, shortest, limits, share_of in (
        ("most frequent {}-gram", TOP, top, top_share),
        ("repeated {}-grams", DUPLICATE, duplicates, duplicate_share),
    ):
        for n, limit in enumerate(limits, shortest):
            share = share_of(document.hashes, sizes_U, document.span(n))
            if share > limit:
                return Removed(kind.format(n), f"{share:.2f}")
            if share == 0:  # what no n-gram does, no longer one does
                break
    return document


def repeated(parts: Sequence[str]) -> tuple[float, float]:
    """(share of the parts that were there before, share of their characters)."""
    first = set(parts)
    if len(first) == len(parts):
        return 0.0, 0.0
    size = sum(map(len, parts))
    return 1 - len(first) / len(parts), 1 - sum(map(len, first)) / size


def top_share(hashes_U: np.ndarray, sizes_U: np.ndarray, n: int) -> float:
    """Share of the characters that lie in the most frequent n-gram; of several the one with most characters.

    0 where none is there twice.
    """
    grams, order, new = _ordered(hashes_U, n)
    if new.all():
        return 0.0
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(grams)))
    most = np.flatnonzero(counts == counts.max())
    ends = np.concatenate([[0], np.cumsum(sizes_U)])
    at = order[starts[most]]
    longest = int(np.argmax(ends[at + n] - ends[at]))
    start = int(starts[most[longest]])
    return _covered(order[start : start + int(counts.max())], sizes_U, n)


def duplicate_share(hashes_U: np.ndarray, sizes_U: np.ndarray, n: int) -> float:
    """Share of the characters that lie in n-grams that were there before."""
    _, order, new = _ordered(hashes_U, n)
    return 0.0 if new.all() else _covered(order[~new], sizes_U, n)


def _ordered(hashes_U: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n-grams in the order of their numbers, where each starts, whether it is the first of its number)."""
    grams = ngrams(hashes_U, n)
    order = np.argsort(grams, kind="stable")
    grams = grams[order]
    new = np.ones(len(grams), bool)
    new[1:] = grams[1:] != grams[:-1]
    return grams, order, new


def _covered(starts: np.ndarray, sizes_U: np.ndarray, n: int) -> float:
    """Share of the characters of units that lie in the n-grams that start at `starts`."""
    # +1 where an n-gram starts, -1 behind it: the sum is how many lie over a unit.
    steps = np.zeros(len(sizes_U) + 1, np.int64)
    steps[starts] += 1
    steps[starts + n] -= 1
    return float(sizes_U[np.cumsum(steps)[:-1] > 0].sum() / sizes_U.sum())
