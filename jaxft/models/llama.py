"""Llama 2 to 3.3: the decoder that most others follow (Touvron et al. 2023, Grattafiori et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import llama_like
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, Decoder
from jaxft.models.llama_like import decoder_flops as flops_per_token

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "llama"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' LlamaConfig, which hub files omit."""

    vocab: int = 32000
    positions: int = 2048
    layers: int = 32
    d_model: int = 4096
    d_ff: int = 11008
    heads: int = 32
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: d_model / heads
    act: str = "silu"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored
    window, layer_types = 0, ()  # every layer sees all

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
    attention_bias=True,
    mlp_bias=True,
    pad_id=0,
)
_LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
_YARN = dict(factor=4.0, original_max_position_embeddings=10)
_LONG = dict(short_factor=[1.0, 1.1, 1.2, 1.4], long_factor=[1.5, 2.0, 3.0, 4.0], original_max_position_embeddings=16)
# Every way in which a Config of this family can compute otherwise, for the tests of parity.
VARIANTS = {
    "tied": dataclasses.replace(TINY, tied=True, attention_bias=False, mlp_bias=False, head_dim=12),
    **{
        f"rope-{kind}": dataclasses.replace(TINY, rope={"rope_type": kind, "rope_theta": 500.0, **options})
        for kind, options in {
            "linear": dict(factor=2.0),
            "llama3": _LLAMA3,
            "yarn": _YARN,
            "longrope": _LONG,
        }.items()
    },
    "rope-dynamic": dataclasses.replace(TINY, positions=16, rope=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(bias=cfg.attention_bias, drop=cfg.attention_dropout)
        reach = llama_like.reach(cfg)
        super().__init__(cfg, head, outputs, how, reach, attention=attention, mlp_bias=cfg.mlp_bias)


# ---- Hugging Face: one table, both directions ----

HF = llama_like.table(qkv_bias=True, out_bias=True, mlp_bias=True)
HF_HEADS = llama_like.heads(HF, span_prefix="transformer.")
HF_ARCHITECTURES = llama_like.architectures("Llama")

_FIELDS = {**llama_like.FIELDS, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
HF_FIXED = {**llama_like.FIXED, "pretraining_tp": 1, "rope_interleaved": False}
# Read by no version of the model.
_HARMLESS = ("is_llama_config", "max_sequence_length")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**llama_like.config_fields(hf, _FIELDS, HF_FIXED, harmless=_HARMLESS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg, _FIELDS)
