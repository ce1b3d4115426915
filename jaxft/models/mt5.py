"""mT5: T5 1.1 in a hundred languages (Xue et al. 2021). Logits have a table of their own and are never scaled."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.models import t5
from jaxft.models.t5 import (
    HF,
    HF_FIXED,
    HF_HEADS,
    HF_IGNORE,
    HF_LEGACY,
    HF_LENT,
    HF_OTHER,
    HF_PREFIX,
    HF_TIED,
    KIND,
    Model,
    Sizes,
    flops_per_token,
    read_sizes,
)

__all__ = ["HF", "HF_FIXED", "HF_HEADS", "HF_IGNORE", "HF_LEGACY", "HF_LENT", "HF_OTHER", "HF_PREFIX", "HF_TIED"]
__all__ += ["KIND", "Model", "flops_per_token"]

MODEL_TYPE = "mt5"


@dataclass(frozen=True)
class Config(Sizes):
    """The defaults are those of transformers' MT5Config, which hub files omit."""

    vocab: int = 250112
    layers: int = 8
    d_ff: int = 1024
    heads: int = 6
    feed_forward: str = "gated-gelu"


TINY = Config(
    vocab=99, positions=40, layers=2, decoder_layers=3, d_model=16, head_dim=6, d_ff=32, heads=4, buckets=8, longest=20
)
VARIANTS = {"relu": dataclasses.replace(TINY, feed_forward="relu")}
HF_ARCHITECTURES = {head: f"M{name}" for head, name in t5.HF_ARCHITECTURES.items()}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads.

    tie_word_embeddings is not read: version 5 of transformers writes true whatever the weights are.
    """
    return Config(**read_sizes(hf))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    fields = t5.config_to_hf(cfg)
    del fields["scale_decoder_outputs"]
    return fields
