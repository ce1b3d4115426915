"""Gemma 3 without images: five layers that see a window, then one that sees all (Gemma Team 2025)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach
from jaxft.models import gemma_like, llama_like
from jaxft.models.gemma_like import FULL, SLIDING, Decoder, Sizes
from jaxft.models.llama_like import HF_IGNORE, HF_LEGACY, HF_OTHER, HF_PREFIX, HF_TIED
from jaxft.models.table import read_rope, write_rope
from jaxft.registry import UserError

__all__ = ["HF_IGNORE", "HF_LEGACY", "HF_OTHER", "HF_PREFIX", "HF_TIED"]

MODEL_TYPE = "gemma3_text"
KIND = "decoder"


@dataclass(frozen=True)
class Config(Sizes):
    """Sizes and rates; the defaults are those of transformers' Gemma3TextConfig, which hub files omit."""

    vocab: int = 262208
    positions: int = 131072
    pattern: tuple[str, ...] = (*[SLIDING] * 5, FULL)
    softcap: float = 0.0
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 1e6})  # full layers
    sliding_theta: float = 10000.0
    bidirectional: bool = False  # a token sees later ones too, in sliding layers half a window to either side

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional and self.window < 2:
            raise UserError(f"model: window={self.window} of a bidirectional model must be 2 or more")
        self.reach()

    def reach(self) -> dict[str, Reach]:
        """How each kind of layer attends."""
        near = self.turning({"rope_type": "default", "rope_theta": self.sliding_theta})
        window = self.window // 2 if self.bidirectional else self.window
        causal = not self.bidirectional
        return {SLIDING: Reach(causal, window, near), FULL: Reach(causal, rope=self.turning(self.rope))}


TINY = Config(  # the window is shorter than the tests' texts
    vocab=99,
    positions=40,
    layers=5,
    d_model=32,
    d_ff=64,
    heads=4,
    kv_heads=2,
    head_dim=12,
    query_scalar=20,
    window=6,
    pattern=(SLIDING, FULL),
    attention_bias=True,
    tied=False,
)
# Every way in which a Config of this family can compute otherwise, for the tests of parity.
VARIANTS = {
    "tied": dataclasses.replace(TINY, tied=True, attention_bias=False),
    "capped": dataclasses.replace(TINY, softcap=3.0),
    "default-layers": dataclasses.replace(TINY, layers=7, pattern=Config.pattern),
    "bidirectional": dataclasses.replace(TINY, bidirectional=True),
    "rope": dataclasses.replace(
        TINY, sliding_theta=100.0, rope={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    ),
}


class Model(Decoder):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        super().__init__(cfg, head, outputs, how, cfg.reach(), head_norms=True)


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, in a text of `attended` tokens; a causal one sees half of it."""
    return gemma_like.flops_per_token(cfg, 2 * attended if cfg.bidirectional else attended, read)


# ---- Hugging Face: one table, both directions ----

HF = gemma_like.table(head_norms=True)
HF_HEADS = {head: rows for head, rows in llama_like.heads(HF).items() if head in ("causal_lm", "sequence")}
HF_ARCHITECTURES = {"causal_lm": "Gemma3ForCausalLM", "sequence": "Gemma3TextForSequenceClassification"}

HF_FIXED = {
    **gemma_like.FIXED,
    "attn_logit_softcapping": None,
}  # transformers has it among the fields, and caps nothing
_PATTERN = "sliding_window_pattern"  # of files older than layer_types: every so manyth layer sees all
_ROPE = ("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq")
_HARMLESS = (_PATTERN, "_" + _PATTERN, *_ROPE, "use_bidirectional_attention")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    given = gemma_like.read(hf, gemma_like.FIELDS, HF_FIXED, harmless=_HARMLESS)
    if _PATTERN in hf and "pattern" not in given:
        given["pattern"] = (*[SLIDING] * (hf[_PATTERN] - 1), FULL)
    return Config(**given, **_read_ropes(hf), bidirectional=bool(hf.get("use_bidirectional_attention")))


def _read_ropes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 nests rope_parameters by kind of layer; before, rope_theta and rope_scaling were of full ones."""
    nested = hf.get("rope_parameters") or {}
    if strange := sorted(set(nested) - {SLIDING, FULL}):
        raise UserError(
            f"rope_parameters has {', '.join(strange)}; those of a {MODEL_TYPE} model are {SLIDING}, {FULL}"
        )
    scaled = {**(nested.get(FULL) or {}), **(hf.get("rope_scaling") or {})}
    near = read_rope({"rope_parameters": nested.get(SLIDING), "rope_theta": hf.get("rope_local_base_freq")})
    theta = near.pop("rope_theta")
    if near != {"rope_type": "default"}:
        raise UserError(
            f"rope_parameters of {SLIDING}: {near} is not supported; transformers 4 could not read it either"
        )
    return {
        "rope": read_rope({**hf, "rope_parameters": scaled, "rope_scaling": None}, theta=1e6),
        "sliding_theta": theta,
    }


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    near = {"rope_type": "default", "rope_theta": cfg.sliding_theta}
    return {
        **gemma_like.write(cfg, gemma_like.FIELDS),
        **write_rope(cfg.rope),  # transformers 4
        "rope_local_base_freq": cfg.sliding_theta,
        "rope_parameters": {FULL: cfg.rope, SLIDING: near},
        "use_bidirectional_attention": cfg.bidirectional,
    }
