"""Retrieval: vectors by which a text finds the one that belongs to it among all others."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from jaxft.metrics.retrieval import RetrievalMeter
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example
from jaxft.tasks.text import Row, cell, text_of
from jaxft.tasks.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class Retrieval(Vectors):
    """text: the column of queries; pair: of the passage that belongs to each; negatives: of one or a list that do not.

    Each query is to find its own among all passages of the batch, on all devices: cross-entropy over `scale` times
    the cosines, and with `symmetric` that of the passages over the queries, too (Henderson et al. 2017; Radford et
    al. 2021). A pair whose query or passage stands in another row, too, is not learned as wrong there. With
    train.accumulate the passages are those of a micro-batch.
    """

    negatives: str  # "": none beside those of the batch
    scale: float  # 20 is common: 1 / temperature
    symmetric: bool

    blank: ClassVar[object] = 0
    metrics: ClassVar[tuple[str, ...]] = ("mrr_10", "recall_1", "recall_10", "ndcg_10", "loss")
    columns: ClassVar[dict[str, str]] = {"text": "text", "pair": "pair", "negatives": ""}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise UserError(f"task.scale={self.scale} must be above 0; 20 is common")

    @property
    def compared(self) -> int:
        """Texts of a row; where there is a column of negatives, lists are taken to have one."""
        return 3 if self.negatives else 2

    def further_columns(self) -> list[tuple[str, str]]:
        return [("negatives", self.negatives)] if self.negatives else []

    def example(self, row: Row, labelled: bool = True) -> list[Example]:
        """Query, passage, then what does not belong; the label of each tells equal texts. Raises BadRow."""
        texts = self.texts(row, labelled)
        if labelled and self.negatives:
            texts += self._negatives(row, texts[1])
        return [Example(text, None, zlib.crc32(text.encode()) >> 1) for text in texts]

    def _negatives(self, row: Row, right: str) -> list[str]:
        found = cell(row, self.negatives)
        texts = [text_of(one, repr(self.negatives)) for one in (found if isinstance(found, list) else [found])]
        if right in texts:
            raise BadRow(f"{self.negatives!r} has the text of {self.pair!r}: it cannot be right and wrong")
        return texts

    def loss(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy, and how many queries have their own passage first."""
        x_ND = self.readout(vectors_BLD, batch).reshape(-1, vectors_BLD.shape[-1])
        there_N = batch["example"].reshape(-1) >= 0
        part_N, text_N = (jnp.where(there_N, batch[name].reshape(-1), -1) for name in ("part", "label"))
        query_N, passage_N = part_N == 0, part_N > 0
        # A query's own passage stands in the next slot of its row.
        own_NN = query_N[:, None] & (jnp.arange(len(part_N))[None, :] == jnp.arange(len(part_N))[:, None] + 1)
        asked_N = jnp.roll(query_N, 1)  # passages that some query asks for
        # Of a query the text of its passage, of a passage the text of its query.
        other_N = jnp.where(query_N, jnp.roll(text_N, -1), jnp.where(asked_N, jnp.roll(text_N, 1), -2))
        # Right as well, in another row: the same passage, or the passage of the same query.
        twin_NN = (other_N[:, None] == text_N[None, :]) | (text_N[:, None] == other_N[None, :])
        twin_NN &= ~(own_NN | own_NN.T)
        scores_NN = self.scale * (x_ND @ x_ND.T)
        total, hits = _cross_entropy(scores_NN, own_NN, passage_N[None, :] & ~twin_NN, query_N)
        weight = query_N.astype(jnp.float32).sum()
        if self.symmetric:
            back, _ = _cross_entropy(scores_NN, own_NN.T, query_N[None, :] & ~twin_NN, asked_N)
            total = (total + back) / 2
        return {"loss": (total, weight), "accuracy": (hits, weight)}

    def seen(self, vectors_BLD: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to rank all passages of a split: vectors, and which text each is of."""
        told = {name: batch[name] for name in ("example", "part", "label")}
        return told | {"vectors": self.readout(vectors_BLD, batch)}

    def meter(self) -> RetrievalMeter:
        return RetrievalMeter()

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        text: str,
        pair: str,
        negatives: str,
        pooling: str,
        scale: float = 20.0,
        symmetric: bool = False,
    ) -> Self:
        options = dict(text=text, pair=pair, negatives=negatives, pooling=pooling, metric="")
        return cls(**options, scale=scale, symmetric=symmetric)


def _cross_entropy(
    scores_NN: jax.Array, own_NN: jax.Array, choice_NN: jax.Array, asks_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(summed loss, hits) of the rows that ask, over the columns that they may choose, of which one is their own."""
    choice_NN = choice_NN | ~asks_N[:, None]  # a row that does not ask has nothing that is not finite
    others_NN = jnp.where(choice_NN, scores_NN, -jnp.inf)
    loss_N = jax.nn.logsumexp(others_NN, axis=-1) - jnp.where(own_NN, scores_NN, 0).sum(-1)
    hit_N = jnp.take_along_axis(own_NN, jnp.argmax(others_NN, axis=-1)[:, None], axis=-1)[:, 0]
    return jnp.where(asks_N, loss_N, 0).sum(), (asks_N & hit_N).astype(jnp.float32).sum()
