"""Qwen 3 with experts (Yang et al. 2025): Qwen 3 whose feed-forward is a choice of many small experts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.norm import RmsNorm
from jaxft.layers.stack import Execution
from jaxft.models import llama_like, moe_like
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, LAYER
from jaxft.models.moe_like import MoeDecoder, flops_per_token
from jaxft.models.table import norm

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "qwen3_moe"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' Qwen3MoeConfig, which hub files omit."""

    vocab: int = 151936
    positions: int = 32768
    layers: int = 24
    d_model: int = 2048
    d_ff: int = 768  # of one expert
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 0  # 0: d_model / heads
    experts: int = 128
    chosen: int = 8  # experts that a token meets
    renormalise: bool = False  # whether the weights of the chosen experts are made to add up to 1
    balance: bool = False  # whether the loss that balances experts counts, under every head
    balance_coef: float = 0.001
    z_coef: float = 0.0  # of the loss that keeps the router's logits small
    window: int = 0  # tokens that each attends to, itself among them; 0: all before it
    act: str = "silu"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored
    layer_types = ()  # all layers are alike

    def __post_init__(self) -> None:
        moe_like.check(self)


TINY = Config(
    vocab=99,
    positions=40,
    layers=2,
    d_model=32,
    d_ff=16,
    heads=4,
    kv_heads=2,
    head_dim=12,
    experts=8,
    chosen=3,
    attention_bias=True,
    pad_id=0,
)
VARIANTS = {
    "renormalised": replace(TINY, renormalise=True, attention_bias=False, window=9, tied=True),
    "losses": replace(TINY, balance=True, balance_coef=0.1, z_coef=0.01),
}


class Model(MoeDecoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(
            bias=cfg.attention_bias,
            drop=cfg.attention_dropout,
            q_norm=RmsNorm(cfg.head_dim, cfg.eps, axes=("K",)),
            k_norm=RmsNorm(cfg.head_dim, cfg.eps, axes=("K",)),
        )
        super().__init__(cfg, head, outputs, how, attention=attention, renormalise=cfg.renormalise)


# ---- Hugging Face: one table, both directions ----

_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
HF = {
    **moe_like.table("mlp", _PARTS, qkv_bias=True, out_bias=True),
    **norm("blocks/attn/q_norm", LAYER + "self_attn.q_norm", bias=False, letter="K"),
    **norm("blocks/attn/k_norm", LAYER + "self_attn.k_norm", bias=False, letter="K"),
}
HF_HEADS = llama_like.heads(HF, span_prefix="transformer.")
HF_ARCHITECTURES = llama_like.architectures("Qwen3Moe")

_FIELDS = {
    **{name: ours for name, ours in llama_like.FIELDS.items() if name != "intermediate_size"},
    **moe_like.FIELDS,
    "moe_intermediate_size": "d_ff",
    "num_experts": "experts",
    "norm_topk_prob": "renormalise",
    "attention_bias": "attention_bias",
    "sliding_window": "window",
}
# Dense layers between those of experts are not implemented; no model that Qwen released has any.
HF_FIXED = {**llama_like.FIXED, "mlp_only_layers": [], "decoder_sparse_step": 1}
_HARMLESS = ("intermediate_size", "max_window_layers", "use_sliding_window")  # the first is that of dense layers


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    fields = {name: value for name, value in hf.items() if (name, value) != ("mlp_only_layers", None)}
    if "num_local_experts" in fields:  # as transformers 5 writes it
        fields["num_experts"] = fields.pop("num_local_experts")
    if not fields.get("use_sliding_window", False):
        fields["sliding_window"] = None
    elif "sliding_window" not in fields:
        fields["sliding_window"] = 4096
    return Config(**llama_like.config_fields(fields, _FIELDS, HF_FIXED, harmless=_HARMLESS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg, _FIELDS) | {"use_sliding_window": cfg.window > 0}
