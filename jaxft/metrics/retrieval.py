"""Scores of retrieval: made of the rank that each query gives to the first passage that belongs to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.metrics import table
from jaxft.metrics.meters import Meter

TOP = 10
AT_ONCE = 1024  # queries that are compared with all passages at once
EQUAL = (
    1e-6  # scores that differ by less, relative to the largest, do so by rounding: the product of equal rows differs
)


def mrr_10(ranks_Q: np.ndarray) -> float:
    """Mean of 1 / rank, of ranks up to 10 (others count 0)."""
    return float(np.where(ranks_Q <= TOP, 1 / ranks_Q, 0).mean())


def recall_1(ranks_Q: np.ndarray) -> float:
    """Share of the queries whose passage is the first."""
    return float((ranks_Q <= 1).mean())


def recall_10(ranks_Q: np.ndarray) -> float:
    """Share of the queries whose passage is among the first ten."""
    return float((ranks_Q <= TOP).mean())


def ndcg_10(ranks_Q: np.ndarray) -> float:
    """Mean of 1 / log2(1 + rank), of ranks up to 10: the normalised gain where one passage is relevant."""
    return float(np.where(ranks_Q <= TOP, 1 / np.log2(1 + ranks_Q), 0).mean())


def ranks(queries_QD: np.ndarray, passages_PD: np.ndarray, own: Sequence[np.ndarray]) -> np.ndarray:
    """The rank, from 1, of the first of a query's `own` passages among those that are not; of equals the last.

    So no ties are won, and vectors that are not finite win nothing.
    """
    found = []
    for start in range(0, len(queries_QD), AT_ONCE):
        scores_QP = queries_QD[start : start + AT_ONCE] @ passages_PD.T
        for scores_P, mine in zip(scores_QP, own[start : start + AT_ONCE], strict=True):
            best = scores_P[mine].max() - EQUAL * np.abs(scores_P).max()
            above = (scores_P >= best).sum() - (scores_P[mine] >= best).sum()
            found.append(above + 1 if np.isfinite(best) else len(scores_P) + 1)
    return np.array(found)


class RetrievalMeter(Meter):
    """Keeps the vectors of a split (4 x D bytes a text): what is ranked are all of its passages, each text once."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[np.ndarray] = []
        self.asked: list[np.ndarray] = []
        self.own: list[np.ndarray] = []
        self.passages: list[np.ndarray] = []
        self.texts: list[np.ndarray] = []

    def update(self, sums: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> None:
        there_BS = seen["example"] >= 0
        query_BS, passage_BS = there_BS & (seen["part"] == 0), there_BS & (seen["part"] > 0)
        own_BS = there_BS & (seen["part"] == 1)
        self.queries.append(seen["vectors"][query_BS])
        self.asked.append(seen["label"][query_BS])
        self.own.append(seen["label"][own_BS])
        self.passages.append(seen["vectors"][passage_BS])
        self.texts.append(seen["label"][passage_BS])
        loss_sum, weight = (float(x) for x in sums["loss"])
        self.add_loss(loss_sum, weight, int(query_BS.sum()))

    def result(self) -> dict[str, float]:
        if not self.examples:
            raise ValueError("no scores of nothing: no example was added")
        texts, first_P = np.unique(np.concatenate(self.texts), return_index=True)
        asked_Q = np.concatenate(self.asked)
        places: dict[int, set[int]] = {}  # of the passages that belong to a query, in whichever rows
        for query, place in zip(asked_Q, np.searchsorted(texts, np.concatenate(self.own)), strict=True):
            places.setdefault(int(query), set()).add(int(place))
        own = [np.array(sorted(places[int(query)])) for query in asked_Q]
        ranks_Q = ranks(np.concatenate(self.queries), np.concatenate(self.passages)[first_P], own)
        scores = {"mrr_10": mrr_10, "recall_1": recall_1, "recall_10": recall_10, "ndcg_10": ndcg_10}
        return {"loss": self.loss} | {name: score(ranks_Q) for name, score in scores.items()}

    def report(self) -> dict[str, Any]:
        passages = len(np.unique(np.concatenate(self.texts)))
        return {"queries": self.examples, "passages": passages, **self.result()}

    def table(self) -> str:
        return table.scores(self.report())
