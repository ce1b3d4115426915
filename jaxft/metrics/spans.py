"""Answers in a text: the best spans by the logits of their first and last tokens, and their scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.metrics import squad, table
from jaxft.metrics.meters import Meter

NEVER = -1e30  # a logit of what cannot be, as good as minus infinity and finite; also of NaN, which says no more


class Found:
    """The likeliest spans of a context, over all of its windows; `most` are kept.

    A span is a first and a last token with at most `longest` from the one to the other, both included; its score is the
    sum of their logits. That of no answer is the least that any window gives its first token (Devlin et al. 2018,
    section 4.3, and its code).
    """

    def __init__(self, longest: int, most: int):
        self.longest, self.most = longest, most
        self.spans: dict[tuple[int, int], float] = {}  # (first character, past the last) -> score
        self.nothing = np.inf

    def add(self, logits_T2: np.ndarray, chars_T2: np.ndarray) -> None:
        """A window: logits of start and end, and the characters of each token (-1: not of the context)."""
        logits_T2 = np.nan_to_num(logits_T2.astype(np.float64), nan=NEVER)
        self.nothing = min(self.nothing, float(logits_T2[0].sum()))
        start_T, end_T = np.where(chars_T2[:, :1] >= 0, logits_T2, NEVER).T
        padded = np.concatenate([end_T, np.full(self.longest - 1, NEVER)])
        score_TK = start_T[:, None] + np.lib.stride_tricks.sliding_window_view(padded, self.longest)
        flat = score_TK.ravel()
        best = np.argpartition(flat, -self.most)[-self.most :] if self.most < len(flat) else np.arange(len(flat))
        for at in best[flat[best] > NEVER / 2].tolist():
            first, last = at // self.longest, at // self.longest + at % self.longest
            span = int(chars_T2[first, 0]), int(chars_T2[last, 1])
            self.spans[span] = max(self.spans.get(span, -np.inf), float(flat[at]))
        if len(self.spans) > 4 * self.most:
            self.spans = dict(self._ranked())

    def _ranked(self) -> list[tuple[tuple[int, int], float]]:
        return sorted(self.spans.items(), key=lambda item: (-item[1], item[0]))[: self.most]

    @property
    def margin(self) -> float:
        """By how much no answer scores above the best one."""
        return self.nothing - max(self.spans.values(), default=NEVER)

    def answers(self, context: str, *, nothing: bool) -> list[dict[str, Any]]:
        """{answer, start, end, score, probability} of the best spans, the best first; `nothing`: and of no answer.

        The last has the text "" and no place. Probabilities are a softmax over the scores of those in the list.
        """
        ranked: list[tuple[tuple[int, int] | None, float]] = list(self._ranked())
        if nothing or not ranked:
            ranked = sorted([*ranked, (None, self.nothing)], key=lambda item: -item[1])
        score = np.array([score for _, score in ranked])
        weight = np.exp(score - score.max())
        return [
            {
                "answer": context[span[0] : span[1]] if span else "",
                "start": span and span[0],
                "end": span and span[1],
                "score": float(one),
                "probability": float(share),
            }
            for (span, one), share in zip(ranked, weight / weight.sum(), strict=True)
        ]

    def text(self, context: str, *, nothing: bool, threshold: float) -> str:
        """The answer: "" where `nothing` may be one and scores above the best by more than the threshold."""
        if not self.spans or (nothing and self.margin > threshold):
            return ""
        begin, end = self._ranked()[0][0]
        return context[begin:end]


class SpanMeter(Meter):
    """Exact match and F1 of questions, each answered from all of its windows."""

    def __init__(self, *, rules: str, longest: int, most: int, nothing: bool, threshold: float):
        super().__init__()
        self.rules, self.longest, self.most, self.nothing, self.threshold = rules, longest, most, nothing, threshold
        self.pending: dict[int, Found] = {}  # of the examples told: number -> what was found
        self.scores: list[tuple[float, float]] = []  # exact match and F1 of each question
        self.unanswerable: list[bool] = []  # whether it has no answer

    def tell(self, examples: Sequence[Any]) -> None:
        """Objects with `pair`, the context, and `answers`, texts; `row` of the batches is their number here."""
        self._settle()
        super().tell(examples)

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        """`seen`: logits, chars [B, L, 2]; segment [B, L]; example, row [B, S]."""
        for row, logits_T2, chars_T2 in windows(seen, seen["logits"]):
            found = self.pending.setdefault(row, Found(self.longest, self.most))
            found.add(logits_T2, chars_T2)
        self.add_loss(*(float(x) for x in sums["loss"]), examples=int((seen["example"] >= 0).sum()))

    def _settle(self) -> None:
        for row, found in self.pending.items():
            example = self.told[row]
            said = found.text(example.pair, nothing=self.nothing, threshold=self.threshold)
            self.scores.append(squad.score(said, example.answers, self.rules))
            self.unanswerable.append(not example.answers)
        self.pending = {}

    def result(self) -> dict[str, float]:
        self._settle()
        if not self.scores:
            raise ValueError("no scores of nothing: no question was added")
        exact, f1 = np.mean(self.scores, axis=0).tolist()
        return {"loss": self.loss, "f1": f1, "exact_match": exact}

    def report(self) -> dict[str, Any]:
        """Where questions may have no answer also how those that have one were answered, and those that have none."""
        result, score_Q2 = self.result(), np.array(self.scores)
        numbers: dict[str, Any] = {"questions": len(score_Q2), "windows": self.examples, **result}
        if not self.nothing:
            return numbers
        without_Q = np.array(self.unanswerable)
        told = {"unanswerable": int(without_Q.sum())}
        if not without_Q.all():
            exact, f1 = score_Q2[~without_Q].mean(0).tolist()
            told |= {"answerable_f1": f1, "answerable_exact_match": exact}
        if without_Q.any():
            told |= {"unanswerable_right": float(score_Q2[without_Q, 0].mean())}
        return numbers | told

    def table(self) -> str:
        return table.scores(self.report())


def windows(batch: Mapping[str, np.ndarray], logits_BL2: np.ndarray) -> Any:
    """(row, logits, characters of the tokens) of each window of a batch."""
    for at, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        inside_L = batch["segment"][at] == slot + 1
        yield int(batch["row"][at, slot]), logits_BL2[at, inside_L], batch["chars"][at, inside_L]
