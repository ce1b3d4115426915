"""Mixtral: Mistral whose feed-forward is a choice of experts (Jiang et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import llama_like, moe_like
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED
from jaxft.models.moe_like import MoeDecoder, flops_per_token

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "mixtral"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' MixtralConfig, which hub files omit."""

    vocab: int = 32000
    positions: int = 131072
    layers: int = 32
    d_model: int = 4096
    d_ff: int = 14336  # of one expert
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 0  # 0: d_model / heads
    experts: int = 8
    chosen: int = 2  # experts that a token meets
    balance: bool = False  # whether the loss that balances experts counts, under every head
    balance_coef: float = 0.001
    z_coef: float = 0.0  # of the loss that keeps the router's logits small
    window: int = 0  # tokens that each attends to, itself among them; 0: all before it
    act: str = "silu"
    eps: float = 1e-5
    init_std: float = 0.02
    attention_dropout: float = 0.0
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 1000000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored
    layer_types = ()  # all layers are alike

    def __post_init__(self) -> None:
        moe_like.check(self)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4, kv_heads=2, experts=4, chosen=2, pad_id=0)
VARIANTS = {
    "window": replace(TINY, window=9, tied=True, head_dim=12),
    "one-expert-a-token": replace(TINY, chosen=1),
    "losses": replace(TINY, balance=True, balance_coef=0.1, z_coef=0.01),
}


class Model(MoeDecoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        super().__init__(cfg, head, outputs, how, attention=dict(drop=cfg.attention_dropout), renormalise=True)


# ---- Hugging Face: one table, both directions ----

HF = moe_like.table("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
HF_HEADS = llama_like.heads(HF)
HF_ARCHITECTURES = llama_like.architectures("Mixtral")

_FIELDS = {
    **llama_like.FIELDS,
    **moe_like.FIELDS,
    "num_local_experts": "experts",
    "sliding_window": "window",
}
HF_FIXED = {**llama_like.FIXED, "router_jitter_noise": 0.0}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**llama_like.config_fields({"rope_theta": 1e6, **hf}, _FIELDS, HF_FIXED))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg, _FIELDS)
