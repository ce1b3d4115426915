"""What was counted on the way; tallies of parts of a corpus add up to that of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 5  # shown of each reason: the first ones
SHOWN = 160  # characters of a sample

READING = "reading"  # in place of a rule: records that are no documents


@dataclass
class Reason:
    """Why documents went: how many, and the first of them as (place, what was measured, how the text begins)."""

    count: int = 0
    samples: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, other: "Reason") -> None:
        self.count += other.count
        self.samples = (self.samples + other.samples)[:SAMPLES]


@dataclass
class Tally:
    """records and their bytes; kept: documents that passed all rules; rules: name -> what it did.

    Of a rule: seen, changed (documents), done (kind -> how often), removed (reason -> Reason).
    """

    records: int = 0
    bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    rules: dict[str, "Counts"] = field(default_factory=dict)

    def of(self, rule: str) -> "Counts":
        return self.rules.setdefault(rule, Counts())

    def add(self, other: "Tally") -> None:
        """Adds the tally of what comes next in the corpus."""
        self.records += other.records
        self.bytes += other.bytes
        self.kept += other.kept
        self.kept_bytes += other.kept_bytes
        for name, counts in other.rules.items():
            self.of(name).add(counts)

    def to_json(self) -> dict[str, Any]:
        rules = {name: counts.to_json() for name, counts in self.rules.items()}
        return {**{k: getattr(self, k) for k in ("records", "bytes", "kept", "kept_bytes")}, "rules": rules}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tally":
        rules = {name: Counts.from_json(one) for name, one in raw["rules"].items()}
        return cls(**{**raw, "rules": rules})


@dataclass
class Counts:
    """What a rule did."""

    seen: int = 0
    changed: int = 0
    done: dict[str, int] = field(default_factory=dict)
    removed: dict[str, Reason] = field(default_factory=dict)

    def add(self, other: "Counts") -> None:
        self.seen += other.seen
        self.changed += other.changed
        for kind, count in other.done.items():
            self.done[kind] = self.done.get(kind, 0) + count
        for reason, more in other.removed.items():
            self.removed.setdefault(reason, Reason()).add(more)

    def to_json(self) -> dict[str, Any]:
        removed = {reason: {"count": one.count, "samples": one.samples} for reason, one in sorted(self.removed.items())}
        return {"seen": self.seen, "changed": self.changed, "done": dict(sorted(self.done.items())), "removed": removed}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Counts":
        removed = {
            reason: Reason(one["count"], [(where, detail, text) for where, detail, text in one["samples"]])
            for reason, one in raw["removed"].items()
        }
        return cls(raw["seen"], raw["changed"], dict(raw["done"]), removed)


def shown(text: str) -> str:
    """How a text begins, on one line; what cannot be printed as its number."""
    line = " ".join(text[: 2 * SHOWN].split())[:SHOWN]
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in line)
