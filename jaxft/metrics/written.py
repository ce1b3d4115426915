"""The meter of texts made of other texts: the loss of the reference, and scores of what was written instead."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.metrics import table, texts
from jaxft.metrics.language import perplexity
from jaxft.metrics.meters import Meter

SHOWN = 8  # texts in a report
PRINTED = 3  # texts in a table
LINE = 300  # letters of a text there


class Seq2SeqMeter(Meter):
    """`tokenize`: sacrebleu's tokenizer. Texts that were written are held until they are scored."""

    def __init__(self, tokenize: str):
        super().__init__()
        self.tokenize = tokenize
        self.hits = self.nll = 0.0
        self.sources: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        """`seen`: example [B, S]; nll, the summed loss without smoothing, which perplexity is made of."""
        self.add_loss(*(float(x) for x in sums["loss"]), examples=int((seen["example"] >= 0).sum()))
        self.hits += float(sums["accuracy"][0])
        self.nll += float(seen["nll"])

    def add_texts(self, sources: Sequence[str], references: Sequence[str], written: Sequence[str]) -> None:
        self.sources += sources
        self.references += references
        self.texts += written

    def result(self) -> dict[str, float]:
        if not self.weight:
            raise ValueError("no scores of nothing: no token was added")
        scores = {
            "loss": self.loss,
            "perplexity": perplexity(self.nll, self.weight),
            "accuracy": self.hits / self.weight,
        }
        return scores | (texts.scores(self.texts, self.references, self.tokenize) if self.texts else {})

    def report(self) -> dict[str, Any]:
        told = {"examples": self.examples, "tokens": int(self.weight), "texts": len(self.texts), **self.result()}
        if not self.texts:
            return told
        return told | {
            "signatures": texts.signatures(self.texts, self.references, self.tokenize),
            "written": [
                {"source": self.sources[i], "reference": self.references[i], "text": self.texts[i]}
                for i in np.linspace(0, len(self.texts) - 1, min(SHOWN, len(self.texts))).astype(int).tolist()
            ],
        }

    def table(self) -> str:
        report = self.report()
        lines = [table.scores({name: value for name, value in report.items() if isinstance(value, int | float)})]
        if self.texts:
            lines += [f"  {name}: {how}" for name, how in report["signatures"].items()]
            for one in report["written"][:PRINTED]:
                lines += ["", *(f"  {name:<10}{_short(value)}" for name, value in one.items())]
        return "\n".join(lines)


def _short(text: str) -> str:
    return table.one_line(text if len(text) <= LINE else f"{text[: LINE - 1]}…")
