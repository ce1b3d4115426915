"""Phi-3 and Phi-4: Llama with fused projections, and LongRoPE for long contexts (Abdin et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import llama_like
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, LAYER, Decoder
from jaxft.models.llama_like import decoder_flops as flops_per_token
from jaxft.registry import UserError

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "phi3"
KIND = "decoder"

# Keys of `rope`: transformers 4 refuses any other, and knows no other type than these two.
ROPE = {
    "default": {"rope_type", "rope_theta", "partial_rotary_factor"},
    "longrope": {
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "short_factor",
        "long_factor",
        "original_max_position_embeddings",
    },
}


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' Phi3Config, which hub files omit."""

    vocab: int = 32064
    positions: int = 4096
    layers: int = 32
    d_model: int = 3072
    d_ff: int = 8192
    heads: int = 32
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: d_model / heads
    window: int = 0  # tokens that each attends to, itself among them; 0: all before it
    act: str = "silu"
    eps: float = 1e-5
    init_std: float = 0.02
    dropout: float = 0.0  # of what a block adds
    attention_dropout: float = 0.0
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int = 32000

    types = 0  # none: those of a pair's texts are ignored
    layer_types = ()  # all alike

    def __post_init__(self) -> None:
        llama_like.check(self, partial=True)
        kind = self.rope["rope_type"]
        if kind not in ROPE or not self.rope.keys() <= ROPE[kind]:
            raise UserError(
                f"model: rope={dict(self.rope)} is not supported by this family: its rope_type is default or "
                f"longrope, without options beside {', '.join(sorted(ROPE['longrope']))}"
            )


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4, kv_heads=2, dropout=0.1, pad_id=0)
_LONG = dict(
    rope_type="longrope",
    rope_theta=500.0,
    partial_rotary_factor=0.75,
    short_factor=[1.0, 1.1, 1.2],
    long_factor=[1.5, 2.0, 3.0],
)
VARIANTS = {
    "window-tied": replace(TINY, window=9, tied=True),
    "partial": replace(TINY, rope=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)),
    "longrope-beyond": replace(TINY, rope=_LONG | dict(original_max_position_embeddings=16)),
    "longrope-within": replace(TINY, positions=80, rope=_LONG | dict(original_max_position_embeddings=40)),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(drop=cfg.attention_dropout)
        super().__init__(cfg, head, outputs, how, llama_like.reach(cfg), attention=attention, drop=cfg.dropout)


# ---- Hugging Face: one table, both directions ----

HF = {
    **llama_like.table(),
    "blocks/attn/q/kernel": (LAYER + "self_attn.qkv_proj.weight", "+HK D -> D HK"),
    "blocks/attn/k/kernel": (LAYER + "self_attn.qkv_proj.weight", "+GK D -> D GK"),
    "blocks/attn/v/kernel": (LAYER + "self_attn.qkv_proj.weight", "+GK D -> D GK"),
    "blocks/mlp/gate/kernel": (LAYER + "mlp.gate_up_proj.weight", "+F D -> D F"),
    "blocks/mlp/up/kernel": (LAYER + "mlp.gate_up_proj.weight", "+F D -> D F"),
}
HF_HEADS = llama_like.heads(HF, span_prefix=None)
HF_ARCHITECTURES = llama_like.architectures("Phi3", HF_HEADS)

_FIELDS = {**llama_like.FIELDS, "resid_pdrop": "dropout", "sliding_window": "window"}
# What files of the hub beside transformers' fields say, always alike.
HF_FIXED = {
    **llama_like.FIXED,
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}
# embd_pdrop: read by no version of the model. auto_map: the hub's own copy of the code, which nobody runs here.
_HARMLESS = ("embd_pdrop", "auto_map")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**llama_like.config_fields(_today(hf), _FIELDS, HF_FIXED, harmless=_HARMLESS))


def _today(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The file with LongRoPE by its name, which older ones call su or yarn, and with the length that it defaults to."""
    hub = {"original_max_position_embeddings": 4096, **hf}
    for name in ("rope_scaling", "rope_parameters"):
        rope = hub.get(name) or {}
        if {rope.get("type"), rope.get("rope_type")} & {"su", "yarn"}:
            hub[name] = {**rope, "rope_type": "longrope"}
    return hub


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    found = llama_like.hub_fields(cfg, _FIELDS)
    if cfg.rope["rope_type"] == "longrope":  # exactly three fields, or transformers 4 refuses the file
        found["rope_scaling"] = {name: cfg.rope[name] for name in ("short_factor", "long_factor")} | {
            "type": "longrope"
        }
    return found
