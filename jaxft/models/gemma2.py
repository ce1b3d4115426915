"""Gemma 2: every second layer sees a window, scores and logits are softly capped (Gemma Team 2024)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach
from jaxft.models import gemma_like, llama_like
from jaxft.models.gemma_like import FULL, SLIDING, Decoder, Sizes, flops_per_token
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED
from jaxft.models.table import ROPE_FIELDS, read_rope, write_rope

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED", "flops_per_token"]

MODEL_TYPE = "gemma2"
KIND = "decoder"


@dataclass(frozen=True)
class Config(Sizes):
    """Sizes and rates; the defaults are those of transformers' Gemma2Config, which hub files omit."""

    attention_softcap: float = 50.0  # 0: none
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.turning(self.rope)


TINY = Config(  # the window is shorter than the tests' texts, the caps are near their scores
    vocab=99,
    positions=40,
    layers=3,
    d_model=32,
    d_ff=64,
    heads=4,
    kv_heads=2,
    head_dim=12,
    query_scalar=20,
    window=7,
    attention_softcap=2.0,
    softcap=3.0,
    attention_bias=True,
    tied=False,
)
# Every way in which a Config of this family can compute otherwise, for the tests of parity.
VARIANTS = {
    "tied": dataclasses.replace(TINY, tied=True, attention_bias=False),
    "uncapped": dataclasses.replace(TINY, attention_softcap=0.0, softcap=0.0),
    "layers": dataclasses.replace(TINY, layers=4, pattern=(FULL, SLIDING, SLIDING)),
    "rope": dataclasses.replace(TINY, rope={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        rope = cfg.turning(cfg.rope)
        reach = {SLIDING: Reach(causal=True, window=cfg.window, rope=rope), FULL: Reach(causal=True, rope=rope)}
        super().__init__(cfg, head, outputs, how, reach, attention_softcap=cfg.attention_softcap)


# ---- Hugging Face: one table, both directions ----

HF = gemma_like.table(head_norms=False)
HF_HEADS = {head: rows for head, rows in llama_like.heads(HF).items() if head != "span"}
HF_ARCHITECTURES = {head: name for head, name in llama_like.architectures("Gemma2").items() if head in HF_HEADS}

_FIELDS = {**gemma_like.FIELDS, "attn_logit_softcapping": "attention_softcap"}
HF_FIXED = {**gemma_like.FIXED, "use_bidirectional_attention": None}  # read only by kernels that cannot cap scores


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**gemma_like.read(hf, _FIELDS, HF_FIXED, harmless=ROPE_FIELDS), rope=read_rope(hf))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return gemma_like.write(cfg, _FIELDS) | write_rope(cfg.rope)
