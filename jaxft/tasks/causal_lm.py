"""Causal language modelling: the next token of each token, within its document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxft.registry import UserError
from jaxft.tasks.corpus import CorpusTask


@dataclass(frozen=True, kw_only=True)
class CausalLm(CorpusTask):
    """z: coefficient of logsumexp(logits)^2, which keeps logits small over a long run (1e-4 is common); 0: none."""

    z: float

    head: ClassVar[str] = "causal_lm"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "bits_per_byte", "accuracy")
    read: ClassVar[float] = 1.0  # share of a row's tokens whose vectors the head is given

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z < 0:
            raise UserError(f"task.z={self.z} must be 0 or more")

    def change(self, vocabulary: Any, cfg: Any, pieces: Any) -> Any:
        """Rows are learned as they are."""

        def unchanged(batch: dict[str, np.ndarray], draws: Any) -> dict[str, np.ndarray]:
            return batch

        return unchanged

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: cross-entropy, and how many tokens were the likeliest."""
        return logits.cross_entropy(batch["label"], batch["weight"], z=self.z)
