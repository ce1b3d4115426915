"""Qwen 3: Llama whose queries and keys are normalised, each head by itself (Yang et al. 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.norm import RmsNorm
from jaxft.layers.stack import Execution
from jaxft.models import llama_like
from jaxft.models.llama_like import FULL, HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, LAYER, SLIDING, Decoder
from jaxft.models.llama_like import decoder_flops as flops_per_token
from jaxft.models.qwen2 import WINDOWS, read_windows, write_windows
from jaxft.models.table import norm

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "qwen3"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' Qwen3Config, which hub files omit."""

    vocab: int = 151936
    positions: int = 32768
    layers: int = 32
    d_model: int = 4096
    d_ff: int = 22016
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    window: int = 0  # tokens that each attends to, itself among them; 0: all before it
    layer_types: tuple[str, ...] = ()  # sliding_attention where the window holds, else full_attention; (): all alike
    act: str = "silu"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        llama_like.check(self)


TINY = Config(
    vocab=99,
    positions=40,
    layers=2,
    d_model=32,
    d_ff=64,
    heads=4,
    kv_heads=2,
    head_dim=12,
    attention_bias=True,
    pad_id=0,
)
VARIANTS = {
    "tied": replace(TINY, tied=True, attention_bias=False),
    "window-of-some": replace(TINY, layers=3, window=9, layer_types=(FULL, SLIDING, SLIDING)),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(
            bias=cfg.attention_bias,
            drop=cfg.attention_dropout,
            q_norm=RmsNorm(cfg.head_dim, cfg.eps, axes=("K",)),
            k_norm=RmsNorm(cfg.head_dim, cfg.eps, axes=("K",)),
        )
        super().__init__(cfg, head, outputs, how, llama_like.reach(cfg), attention=attention)


# ---- Hugging Face: one table, both directions ----

HF = {
    **llama_like.table(qkv_bias=True, out_bias=True),
    **norm("blocks/attn/q_norm", LAYER + "self_attn.q_norm", bias=False, letter="K"),
    **norm("blocks/attn/k_norm", LAYER + "self_attn.k_norm", bias=False, letter="K"),
}
HF_HEADS = llama_like.heads(HF, span_prefix="transformer.")
HF_ARCHITECTURES = llama_like.architectures("Qwen3")

_FIELDS = {**llama_like.FIELDS, "attention_bias": "attention_bias"}


HF_FIXED = llama_like.FIXED


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    given = llama_like.config_fields(hf, _FIELDS, harmless=WINDOWS)
    return Config(**given, **read_windows(hf, given.get("layers", Config.layers)))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg, _FIELDS) | write_windows(cfg)
