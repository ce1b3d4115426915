"""The end of a corpus: what went, line by line; the report; the index, whose being there says that all is."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import atomic
from jaxft.corpora import parts, report
from jaxft.corpora.duplicates import root
from jaxft.corpora.tally import READING, SAMPLES, Tally, shown
from jaxft.data.prepared import INDEX, Index
from jaxft.registry import UserError

REMOVED = "removed.jsonl"


def finish(
    raw: Mapping[str, Any],
    folder: Path,
    index: Index,
    documents: Any,
    leaders: Mapping[str, np.ndarray],
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Writes removed.jsonl, report.json and report.html, and last corpus.json; prints the report."""
    removed = _removed(documents, leaders)
    write_lines(folder / REMOVED, (json.dumps(one, ensure_ascii=False) + "\n" for one in removed))
    results = {
        "tally": documents.tally.to_json(),
        "duplicates": {kind: _samples(kind, leader_X, documents, leaders) for kind, leader_X in leaders.items()},
        "splits": report.totals(index),
        "seconds": seconds,
        "files": len(index.sources),
    }
    report.write(folder, config=raw, results=results, say=say)
    write_index(folder, index)


def write_index(folder: Path, index: Index) -> None:
    """Writes corpus.json: from now on the corpus is finished."""
    atomic.write(folder / INDEX, index.text())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file that is whole or not there."""
    with atomic.file(path) as draft, draft.open("w", encoding="utf-8") as out:
        out.writelines(lines)


def _removed(documents: Any, leaders: Mapping[str, np.ndarray]) -> Iterator[dict[str, str]]:
    """For each record that went: where it stood, by which rule, why."""
    for path in documents.paths:
        part = parts.read(path)
        assert part is not None, path
        for file, line, rule, reason in part.gone:
            yield {"where": f"{documents.names[file]}:{line}", "rule": rule, "reason": reason}
    for kind, leader_X in leaders.items():
        for one in np.flatnonzero(leader_X >= 0).tolist():
            kept = documents.where(int(leader_X[one]))
            yield {"where": documents.where(one), "rule": f"{kind} duplicate", "reason": f"of {kept}"}


def _samples(kind: str, leader_X: np.ndarray, documents: Any, leaders: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How many duplicates of a kind went, and the first of them with what stays for them."""
    gone = np.flatnonzero(leader_X >= 0)
    both_X = np.where(leaders["exact"] >= 0, leaders["exact"], leaders["near"])
    pairs = [(one, root(both_X, one)) for one in gone[:SAMPLES].tolist()]
    wanted = {one for pair in pairs for one in pair}
    texts = {}
    for part in {int(np.searchsorted(documents.offsets, one, side="right")) - 1 for one in wanted}:
        wanted_X = np.zeros(len(leader_X), bool)
        wanted_X[list(wanted)] = True
        texts |= dict(documents.texts(part, part + 1, wanted_X))
    samples = [
        {
            "removed": documents.where(one),
            "kept": documents.where(stays),
            "removed_text": shown(texts[one]),
            "kept_text": shown(texts[stays]),
        }
        for one, stays in pairs
    ]
    return {"count": len(gone), "bytes": int(documents.sizes[gone].sum()), "samples": samples}


def refuse_bad(tally: Tally) -> None:
    """Raises UserError where records were no documents."""
    reasons = tally.of(READING).removed
    if reasons:
        lines = [f"  {place}: {reason}" for reason, one in reasons.items() for place, _, _ in one.samples]
        count = sum(one.count for one in reasons.values())
        raise UserError(
            f"{count:,} of the first {tally.records:,} records cannot be used:\n"
            + "\n".join(lines[:SAMPLES])
            + "\nmend them, or leave them out with --config.text.on_bad=skip (counted, and listed in removed.jsonl)"
        )


def why(tally: Tally) -> str:
    """Which rules took most of the documents, for a message."""
    counts = {
        f"{rule}: {reason}": one.count for rule, rules in tally.rules.items() for reason, one in rules.removed.items()
    }
    most = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return "; ".join(f"{count:,} went by {what}" for what, count in most)
