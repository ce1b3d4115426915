"""BART: an encoder-decoder of BERT's blocks (Lewis et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.stack import Execution
from jaxft.models import bart_like
from jaxft.models.bart_like import HF_LEGACY, HF_OTHER, HF_PREFIX, Bart, flops_per_token
from jaxft.models.table import dense

__all__ = ["HF_LEGACY", "HF_OTHER", "HF_PREFIX", "flops_per_token"]

MODEL_TYPE = "bart"
KIND = "encdec"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' BartConfig, which hub files omit."""

    vocab: int = 50265
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
    classifier_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    start_id: int = 2
    eos_id: int = 2
    pad_id: int = 1

    types = 0  # none: those of a pair's texts are ignored
    tied = True

    def __post_init__(self) -> None:
        bart_like.check(self)


TINY = Config(
    vocab=99, positions=40, layers=2, decoder_layers=3, d_model=32, d_ff=64, decoder_d_ff=48, heads=4, decoder_heads=2
)
VARIANTS = {"scaled": dataclasses.replace(TINY, scale_embedding=True)}


class Model(Bart):
    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        super().__init__(cfg, head, outputs, how, learned=True)


# ---- Hugging Face: one table, both directions ----

HF = bart_like.table(learned=True)
HF_HEADS = {
    "seq2seq_lm": bart_like.SEQ2SEQ,
    "sequence": dense("head/pooler", "classification_head.dense", "P D -> D P")
    | dense("head/classifier", "classification_head.out_proj", "C P -> P C"),
    "span": dense("head/classifier", "qa_outputs", "C D -> D C"),
}
HF_IGNORE = (r"(model\.)?(encoder|decoder)\.version",)
HF_TIED = {"seq2seq_lm": bart_like.SEQ2SEQ_COPIES, "sequence": bart_like.COPIES, "span": bart_like.COPIES}
HF_ARCHITECTURES = {
    "seq2seq_lm": "BartForConditionalGeneration",
    "sequence": "BartForSequenceClassification",
    "span": "BartForQuestionAnswering",
}

_FIELDS = {**bart_like.FIELDS, "classifier_dropout": "classifier_dropout"}
HF_FIXED = {**bart_like.FIXED, "normalize_embedding": True, "static_position_embeddings": False}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**bart_like.read(hf, _FIELDS, HF_FIXED))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()}
