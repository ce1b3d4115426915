"""A record through all rules."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxft.corpora import RULES
from jaxft.corpora.document import Document, Removed
from jaxft.corpora.duplicates import Near
from jaxft.corpora.sources import Record, nbytes, text_of
from jaxft.corpora.tally import READING, Reason, Tally, shown
from jaxft.registry import BadRow, UserError, bind

Rule = Callable[[Document], Document | Removed]


class Kept(NamedTuple):
    """A document that passed all rules. digest: 16 bytes that say what its text is; signature: uint32 [K], or empty."""

    file: int
    line: int
    text: str
    digest: bytes
    signature: np.ndarray


class Gone(NamedTuple):
    """A record that did not: by which rule, or READING, and why."""

    file: int
    line: int
    rule: str
    reason: str


@dataclass
class Cleaned:
    """Records of a part of the corpus, in order, and what was counted."""

    kept: list[Kept]
    gone: list[Gone]
    tally: Tally


class Cleaner:
    """order: names of sections of `rules`, each a call: dict(name=..., options); `near`: who makes signatures, or None.

    names, formats: of the files of the source. Raises UserError for a rule or an option that does not exist.
    """

    def __init__(
        self,
        *,
        order: Sequence[str],
        rules: Mapping[str, Any],
        near: Near | None,
        column: str,
        names: Sequence[str],
        formats: Sequence[str],
    ):
        self.rules = rules_of(order, rules)
        self.near, self.column, self.names, self.formats = near, column, names, formats

    def where(self, file: int, line: int) -> str:
        return f"{self.names[file]}:{line}"

    def clean(self, records: Iterable[Record]) -> Cleaned:
        """All rules over all records."""
        out = Cleaned([], [], Tally())
        for name in (READING, *self.rules):
            out.tally.of(name)
        for record in records:
            out.tally.records += 1
            out.tally.bytes += nbytes(record) - 64
            self._one(record, out)
        return out

    def _one(self, record: Record, out: Cleaned) -> None:
        file, line, raw = record
        out.tally.of(READING).seen += 1
        try:
            document = Document(text_of(raw, self.formats[file], self.column))
        except BadRow as error:
            self._gone(out, record, READING, Removed(*_counted(str(error))), raw if isinstance(raw, bytes) else b"")
            return
        for name, rule in self.rules.items():
            counts = out.tally.of(name)
            counts.seen += 1
            try:
                result = rule(document)
            except Exception as error:
                error.add_note(f"{self.where(file, line)}: in the rule {name}")
                raise
            if isinstance(result, Removed):
                self._gone(out, record, name, result, document.text)
                return
            if result.text != document.text:
                counts.changed += 1
                for kind, count in result.done.items():
                    counts.done[kind] = counts.done.get(kind, 0) + count
            document = result
        encoded = document.text.encode()
        out.tally.kept += 1
        out.tally.kept_bytes += len(encoded)
        signature = self.near.signature(document.text) if self.near else np.zeros(0, np.uint32)
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        out.kept.append(Kept(file, line, document.text, digest, signature))

    def _gone(self, out: Cleaned, record: Record, rule: str, removed: Removed, text: str | bytes) -> None:
        if isinstance(text, bytes):
            text = text[:1000].decode(errors="backslashreplace")
        sample = (self.where(record.file, record.line), removed.detail, shown(text))
        out.tally.of(rule).removed.setdefault(removed.reason, Reason()).add(Reason(1, [sample]))
        out.gone.append(Gone(record.file, record.line, rule, ": ".join(filter(None, removed))))


def rules_of(order: Sequence[str], rules: Mapping[str, Any]) -> dict[str, Rule]:
    """Section -> the rule with its options, in order. Raises UserError."""
    out: dict[str, Rule] = {}
    for name in order:
        if name not in rules:
            raise UserError(f"order names {name!r}, which is no section of rules; sections: {', '.join(rules)}")
        if name in out:
            raise UserError(f"order names {name!r} twice; a second section of rules may have the same rule")
        out[name] = bind(RULES, rules[name], f"rules.{name}", "document")
    return out


def _counted(reason: str) -> tuple[str, str]:
    """(what is counted, detail): reasons that differ in numbers alone count together."""
    head, _, tail = reason.partition(" (")
    return (head, tail.rstrip(")")) if tail else (reason, "")
