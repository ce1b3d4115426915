"""Masked language modelling (Devlin et al. 2018): tokens that are hidden, guessed from those on both sides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxft.registry import UserError
from jaxft.tasks.corpus import CorpusTask

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class MaskedLm(CorpusTask):
    """rate: share of a row's tokens that are guessed, chosen anew for every batch. whole_words: words are hidden whole.

    Of the chosen tokens 80 % become the mask, 10 % any token, 10 % stay. Special tokens are never chosen.
    """

    rate: float
    whole_words: bool

    # Shares of the chosen tokens that become the mask, and any token; the others stay.
    masked: ClassVar[float] = 0.8
    random: ClassVar[float] = 0.1
    head: ClassVar[str] = "masked_lm"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise UserError(f"task.rate={self.rate} must be above 0 and below 1; 0.15 is BERT's")

    @property
    def read(self) -> float:
        """Share of the tokens whose vectors the head reads."""
        return self.rate

    def change(self, vocabulary: Any, cfg: Any, pieces: Any) -> Any:
        """Hides tokens of a batch, by data.corpus.Draws. `vocabulary` (hf.tokenizer.Vocabulary) knows the mask, special
        tokens and words.

        The batch gets `at` [B, K], the places that are guessed, and label and weight [B, K] instead of [B, L]. K is
        the most there can be: places beyond those of a row are 0 and have weight 0.
        """
        if vocabulary.mask_id is None:
            raise UserError(
                "the task hides tokens, but the tokenizer has no mask token; use the tokenizer of an encoder, or "
                "--config.task.name=causal_lm"
            )
        ordinary_V = np.flatnonzero(~vocabulary.special_V)

        def hide(batch: Batch, draws: Any) -> Batch:
            ids_BL = batch["ids"]
            eligible_BL = (batch["segment"] > 0) & ~vocabulary.special_V[ids_BL]
            begins_BL = vocabulary.begins_V[ids_BL] | (batch["position"] == 0)
            at_BK, chosen_BK = _choose(
                eligible_BL, begins_BL if self.whole_words else np.ones_like(begins_BL), self.rate, draws
            )
            rows_B1 = np.arange(len(ids_BL))[:, None]
            label_BK = ids_BL[rows_B1, at_BK]
            K = at_BK.shape[1]
            kind_BK, any_BK = draws.random(K), ordinary_V[draws.below(len(ordinary_V), K)]
            shown_BK = np.where(kind_BK < self.masked, vocabulary.mask_id, label_BK)
            shown_BK = np.where((kind_BK >= self.masked) & (kind_BK < self.masked + self.random), any_BK, shown_BK)
            hidden_BL = ids_BL.copy()
            row_J, slot_J = np.nonzero(chosen_BK)
            hidden_BL[row_J, at_BK[row_J, slot_J]] = shown_BK[row_J, slot_J]
            return batch | {
                "ids": hidden_BL,
                "at": at_BK,
                "label": label_BK,
                "weight": chosen_BK.astype(np.float32),
            }

        return hide

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy of the hidden tokens, and how many were the likeliest."""
        return logits.cross_entropy(batch["label"], batch["weight"])


def _choose(eligible_BL: np.ndarray, begins_BL: np.ndarray, rate: float, draws: Any) -> tuple[np.ndarray, np.ndarray]:
    """(places [B, K] in order, 0 where there is none; whether there is one [B, K]) of the tokens that are guessed.

    Of a row's n eligible tokens round(rate * n) are, at least one; of words (from one `begins` to the next) all or
    none, so then it may be fewer, unless the first word is longer than that.
    """
    B, L = eligible_BL.shape
    K = max(1, math.ceil(rate * L))
    word_BL = np.cumsum(begins_BL, axis=1) - 1
    lot_BL = np.take_along_axis(draws.random(L), np.maximum(word_BL, 0), axis=1)
    lot_BL = np.where(eligible_BL, lot_BL, 2.0)  # behind all others
    order_BL = np.argsort(lot_BL, axis=1, kind="stable")
    n_B = eligible_BL.sum(1)
    wanted_B = np.where(n_B > 0, np.clip(np.rint(rate * n_B), 1, K), 0).astype(np.int64)
    # A word that is cut by the limit is given back, unless it is the only one.
    word_of_BL = np.take_along_axis(word_BL, order_BL, axis=1)
    row_B = np.arange(B)
    last_B, next_B = np.maximum(wanted_B - 1, 0), np.minimum(wanted_B, L - 1)
    cut_B = (wanted_B < n_B) & (word_of_BL[row_B, last_B] == word_of_BL[row_B, next_B])
    rank_L = np.arange(L)
    whole_BL = (rank_L < wanted_B[:, None]) & (word_of_BL != word_of_BL[row_B, last_B][:, None])
    kept_B = np.where(cut_B & whole_BL.any(1), whole_BL.sum(1), wanted_B)
    chosen_BK = np.arange(K) < kept_B[:, None]
    at_BK = np.where(chosen_BK, order_BL[:, :K], L)
    at_BK = np.sort(at_BK, axis=1)
    return np.where(chosen_BK, at_BK, 0).astype(np.int32), chosen_BK
