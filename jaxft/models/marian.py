"""Marian: the translators of OPUS-MT, BART with sines for positions (Junczys-Dowmunt et al. 2018).

Source and target share one vocabulary; a checkpoint with two is refused.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import bart_like
from jaxft.models.bart_like import HF_LEGACY, HF_OTHER, HF_PREFIX, Bart, flops_per_token
from jaxft.registry import UserError

__all__ = ["HF_LEGACY", "HF_OTHER", "HF_PREFIX", "flops_per_token"]

MODEL_TYPE = "marian"
KIND = "encdec"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' MarianConfig, which hub files omit."""

    vocab: int = 58101
    positions: int = 1024
    layers: int = 12
    decoder_layers: int = 12
    d_model: int = 1024
    d_ff: int = 4096
    decoder_d_ff: int = 4096
    heads: int = 16
    decoder_heads: int = 16
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    start_id: int = 58100
    eos_id: int = 0
    pad_id: int = 58100

    types = 0  # none: those of a pair's texts are ignored
    tied = True

    def __post_init__(self) -> None:
        bart_like.check(self)


TINY = Config(
    vocab=99, positions=40, layers=2, decoder_layers=3, d_model=32, d_ff=64, decoder_d_ff=48, heads=4, decoder_heads=2,
    act="swish", scale_embedding=True, start_id=1, pad_id=1,
)  # fmt: skip
VARIANTS = {"plain": dataclasses.replace(TINY, scale_embedding=False)}


class Model(Bart):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        super().__init__(cfg, head, outputs, how, learned=False)


# ---- Hugging Face: one table, both directions ----

HF = bart_like.table(learned=False)
HF_HEADS = {"seq2seq_lm": bart_like.SEQ2SEQ}
HF_IGNORE = (r"model\.(encoder|decoder)\.embed_positions\.weight",)
HF_TIED = {"seq2seq_lm": bart_like.SEQ2SEQ_COPIES}
HF_ARCHITECTURES = {"seq2seq_lm": "MarianMTModel"}

HF_FIXED = {
    **bart_like.FIXED,
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "share_encoder_decoder_embeddings": True,
}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    fields = {name: value for name, value in hf.items() if name not in ("decoder_vocab_size", "classifier_dropout")}
    cfg = Config(**bart_like.read(fields, bart_like.FIELDS, HF_FIXED))
    target = hf.get("decoder_vocab_size")
    if target not in (None, cfg.vocab):
        raise UserError(f"config.json: decoder_vocab_size={target} beside vocab_size={cfg.vocab} is not supported")
    return cfg


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in bart_like.FIELDS.items()} | {"decoder_vocab_size": cfg.vocab}
