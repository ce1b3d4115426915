"""The tokenizer of a corpus: trained on its documents, or one that exists."""

from collections.abc import Callable, Iterable
from pathlib import Path

from jaxft.corpora.options import Tokenizer
from jaxft.hf import hub, tokenizer, trainers
from jaxft.registry import lookup


def make(section: Tokenizer, texts: Iterable[str], count: int, target: Path, say: Callable[[str], None]) -> None:
    """Writes the tokenizer into the folder `target`, which appears whole or not at all. `texts`: `count` documents."""
    if not section.hf:
        say(f"training a {section.name} tokenizer of {section.vocab:,} entries on {count:,} documents")
        train = lookup(trainers.TRAINERS, section.name, "tokenizer.name")
        train(texts, vocab=section.vocab, lowercase=section.lowercase, folder=target, positions=section.positions)
        return
    tokenizer.copy(hub.resolve(section.hf, weights=False, field="tokenizer.hf"), target, section.positions)
