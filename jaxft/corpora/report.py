"""report.json, report.html and the table in the terminal: what came in, what each rule took, what came out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxft import atomic, pages
from jaxft.corpora.tally import READING
from jaxft.data.prepared import Index

TEMPLATE = Path(__file__).with_name("report.html.j2")


def totals(index: Index) -> dict[str, dict[str, int]]:
    """Split -> shards, documents, tokens, bytes."""
    return {
        name: {"shards": len(shards)}
        | {key: sum(getattr(one, key) for one in shards) for key in ("documents", "tokens", "bytes")}
        for name, shards in index.splits.items()
    }


def write(folder: Path, *, config: Mapping[str, Any], results: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Writes both files, and says the table. `results`: tally, duplicates, splits, seconds, files (ending.finish)."""
    page = pages.page(
        TEMPLATE,
        {"number": lambda value: f"{value:,}", "size": size},
        results=results,
        rows=rows(results),
        config=json.dumps(config, indent=1, ensure_ascii=False),
        name=folder.name,
    )
    text = json.dumps({**results, "config": config}, indent=1, ensure_ascii=False)
    atomic.write(folder / "report.json", text + "\n")
    atomic.write(folder / "report.html", page)
    for line in table(results):
        say(line)


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each rule, in order: name, seen, changed, removed, left; reasons and what it did."""
    out, left = [], results["tally"]["records"]
    for name, counts in results["tally"]["rules"].items():
        removed = sum(one["count"] for one in counts["removed"].values())
        left -= removed
        reasons = sorted(counts["removed"].items(), key=lambda item: -item[1]["count"])
        out.append(
            {"name": name, "removed": removed, "left": left, "reasons": reasons}
            | {k: counts[k] for k in ("seen", "changed", "done")}
        )
    for kind, found in results["duplicates"].items():
        seen, left = left, left - found["count"]
        out.append(
            {
                "name": f"{kind} duplicates",
                "seen": seen,
                "changed": 0,
                "done": {},
                "removed": found["count"],
                "left": left,
                "reasons": [],
            }
        )
    return out


def table(results: Mapping[str, Any]) -> list[str]:
    """The report in the terminal."""
    tally, splits = results["tally"], results["splits"]
    lines = [
        f"{tally['records']:,} records, {size(tally['bytes'])}",
        f"{'':24}{'changed':>12}{'removed':>12}{'left':>12}",
    ]
    for row in rows(results):
        name = "not readable" if row["name"] == READING else row["name"]
        reasons = ", ".join(f"{reason} {one['count']:,}" for reason, one in row["reasons"][:3])
        more = ", ..." if len(row["reasons"]) > 3 else ""
        lines.append(f"{name:24}{row['changed']:>12,}{row['removed']:>12,}{row['left']:>12,}  {reasons}{more}".rstrip())
    for name, split in splits.items():
        per = split["bytes"] / max(1, split["tokens"])
        lines.append(
            f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {size(split['bytes'])}, "
            f"{per:.2f} bytes a token; {split['shards']:,} shards"
        )
    seconds = max(results["seconds"], 1e-9)
    lines.append(
        f"{seconds:.1f} s: {tally['records'] / seconds:,.0f} records and {size(tally['bytes'] / seconds)} a second"
    )
    return lines


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
