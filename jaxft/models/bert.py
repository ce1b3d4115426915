"""BERT: a bidirectional encoder, layer norm after each residual (Devlin et al. 2018)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import SequenceHead
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.models import bert_like
from jaxft.models.table import bare, check_sizes, dense, read_fields, write_fields

MODEL_TYPE = "bert"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' BertConfig, which hub files omit."""

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    layers: int = 12
    d_model: int = 768
    d_ff: int = 3072
    heads: int = 12
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None  # None: as `dropout`
    eps: float = 1e-12
    init_std: float = 0.02
    tied: bool = True  # of a head over the vocabulary: its table is the embedding's
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, *bert_like.SIZES, acts=ACTIVATIONS)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4)
VARIANTS = {"untied": dataclasses.replace(TINY, tied=False, act="relu")}


class Model(bert_like.Encoder):
    """Word + position + token type, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = bert_like.text_embed(cfg, cfg.d_model)
        super().__init__(cfg, embed, _head(cfg, head, outputs, embed), how)


def _head(cfg: Config, head: str, outputs: int, embed: TextEmbed) -> Any:
    drop = bert_like.classifier_dropout(cfg)
    if head == "masked_lm":
        return bert_like.masked_lm_head(cfg, embed, cfg.d_model, cfg.act)
    if head in ("sequence", "multiple_choice"):
        return SequenceHead(cfg.d_model, outputs, act="tanh", drop=drop, init=Normal(cfg.init_std))
    return bert_like.token_head(cfg, head, outputs, drop=drop)


flops_per_token = bert_like.flops_per_token


# ---- Hugging Face: one table, both directions ----

_LM = "cls.predictions."
HF = bert_like.table("bert.")
_POOLED = dense("head/pooler", "bert.pooler.dense", "P D -> D P") | dense("head/classifier", "classifier", "C P -> P C")
HF_HEADS = {
    "masked_lm": bert_like.masked_lm(
        _LM + "transform.dense", _LM + "transform.LayerNorm", _LM + "decoder", bias=_LM + "bias"
    ),
    "sequence": _POOLED,
    "multiple_choice": _POOLED,
    "vectors": bare(HF, "bert."),
    "token": bert_like.TOKEN,
    "span": bert_like.SPAN,
}
HF_PREFIX = "bert."
HF_IGNORE = (r"(bert\.)?embeddings\.position_ids",)
HF_OTHER = (r"cls\..*", r"qa_outputs\..*", r"classifier\..*", r"(bert\.)?pooler\..*")
HF_LEGACY = bert_like.LEGACY
HF_TIED = {
    "masked_lm": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
}
HF_ARCHITECTURES = bert_like.architectures("Bert")


HF_FIXED = bert_like.FIXED


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**read_fields(hf, bert_like.FIELDS, HF_FIXED))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return write_fields(cfg, bert_like.FIELDS)
