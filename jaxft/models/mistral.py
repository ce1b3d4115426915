"""Mistral: Llama whose layers see a window of the last tokens, in its first version (Jiang et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import llama_like
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, Decoder
from jaxft.models.llama_like import decoder_flops as flops_per_token

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "mistral"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' MistralConfig, which hub files omit."""

    vocab: int = 32000
    positions: int = 131072
    layers: int = 32
    d_model: int = 4096
    d_ff: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 0  # 0: d_model / heads
    window: int = 4096  # tokens that each attends to, itself among them; 0: all before it
    act: str = "silu"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored
    layer_types = ()  # all alike

    def __post_init__(self) -> None:
        llama_like.check(self)


TINY = Config(
    vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4, kv_heads=2, head_dim=12, window=9, pad_id=0
)
VARIANTS = {"full": replace(TINY, window=0, tied=True)}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(drop=cfg.attention_dropout)
        super().__init__(cfg, head, outputs, how, llama_like.reach(cfg), attention=attention)


# ---- Hugging Face: one table, both directions ----

HF = llama_like.table()
HF_HEADS = llama_like.heads(HF)
HF_ARCHITECTURES = llama_like.architectures("Mistral")

_FIELDS = {**llama_like.FIELDS, "sliding_window": "window"}


HF_FIXED = llama_like.FIXED


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**llama_like.config_fields(hf, _FIELDS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg, _FIELDS)
