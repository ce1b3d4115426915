"""Qwen 2 and 2.5: Llama with biases on queries, keys and values alone (Yang et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import llama_like
from jaxft.models.llama_like import FULL, HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED, SLIDING, Decoder
from jaxft.models.llama_like import decoder_flops as flops_per_token

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "qwen2"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' Qwen2Config, which hub files omit."""

    vocab: int = 151936
    positions: int = 32768
    layers: int = 32
    d_model: int = 4096
    d_ff: int = 22016
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 0  # 0: d_model / heads
    window: int = 0  # tokens that each attends to, itself among them; 0: all before it
    layer_types: tuple[str, ...] = ()  # sliding_attention where the window holds, else full_attention; (): all alike
    act: str = "silu"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        llama_like.check(self)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4, kv_heads=2, pad_id=0)
VARIANTS = {
    "tied": replace(TINY, tied=True),
    "window": replace(TINY, window=9),
    "window-of-some": replace(TINY, layers=3, window=9, layer_types=(FULL, SLIDING, FULL)),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        attention = dict(bias=True, out_bias=False, drop=cfg.attention_dropout)
        super().__init__(cfg, head, outputs, how, llama_like.reach(cfg), attention=attention)


# ---- Hugging Face: one table, both directions ----

HF = llama_like.table(qkv_bias=True)
HF_HEADS = llama_like.heads(HF, span_prefix="transformer.")
HF_ARCHITECTURES = llama_like.architectures("Qwen2")

# Which layers see a window alone, at the defaults of the hub's fields.
WINDOWS: dict[str, Any] = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


HF_FIXED = {**llama_like.FIXED, "use_mrope": False}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    given = llama_like.config_fields(hf, fixed=HF_FIXED, harmless=WINDOWS)
    return Config(**given, **read_windows(hf, given.get("layers", Config.layers)))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return llama_like.hub_fields(cfg) | write_windows(cfg)


def read_windows(hf: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """`window` and `layer_types`: the file's or, in older ones, the window from layer max_window_layers on."""
    hub = {name: hf.get(name, default) for name, default in WINDOWS.items()}
    window = (hub["sliding_window"] or 0) if hub["use_sliding_window"] else 0
    first = hub["max_window_layers"] if window else layers
    types = hub["layer_types"] or [SLIDING if i >= first else FULL for i in range(layers)]
    return {"window": window, "layer_types": tuple(types)}


def write_windows(cfg: Any) -> dict[str, Any]:
    """Both ways to say it."""
    each = llama_like.windows(cfg)
    return {
        "use_sliding_window": any(each),
        "sliding_window": cfg.window or None,
        "max_window_layers": next((i for i, window in enumerate(each) if window), cfg.layers),
        "layer_types": [SLIDING if window else FULL for window in each],
    }
