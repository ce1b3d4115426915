"""DistilBERT: BERT of half the layers, without token types and pooler (Sanh et al. 2019)."""

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
from jaxft.models.table import bare, check_sizes, dense, norm, read_fields, write_fields

MODEL_TYPE = "distilbert"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' DistilBertConfig, which hub files omit."""

    vocab: int = 30522
    positions: int = 512
    layers: int = 6
    d_model: int = 768
    d_ff: int = 3072
    heads: int = 12
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.2
    span_dropout: float = 0.1
    init_std: float = 0.02
    tied: bool = True  # of a head over the vocabulary: its table is the embedding's
    pad_id: int = 0

    types = 0  # none: those of a pair's texts are ignored
    eps = 1e-12  # not a field of its config.json

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "positions", "layers", "d_model", "d_ff", "heads", acts=ACTIVATIONS)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4)
VARIANTS = {"untied": dataclasses.replace(TINY, tied=False, act="relu")}


class Model(bert_like.Encoder):
    """Word + position, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = bert_like.text_embed(cfg, cfg.d_model)
        super().__init__(cfg, embed, _head(cfg, head, outputs, embed), how)


def _head(cfg: Config, head: str, outputs: int, embed: TextEmbed) -> Any:
    if head == "masked_lm":
        return bert_like.masked_lm_head(cfg, embed, cfg.d_model, cfg.act)
    if head in ("sequence", "multiple_choice"):
        return SequenceHead(cfg.d_model, outputs, act="relu", drop=cfg.classifier_dropout, init=Normal(cfg.init_std))
    return bert_like.token_head(cfg, head, outputs, drop=cfg.dropout, span_drop=cfg.span_dropout)


flops_per_token = bert_like.flops_per_token


# ---- Hugging Face: one table, both directions ----

_LAYER = "distilbert.transformer.layer.{N}."
HF = {
    "embed/word/table": ("distilbert.embeddings.word_embeddings.weight", "V D"),
    "embed/position/table": ("distilbert.embeddings.position_embeddings.weight", "T D"),
    **norm("embed/norm", "distilbert.embeddings.LayerNorm"),
    **dense("blocks/attn/q", _LAYER + "attention.q_lin", "HK D -> D HK"),
    **dense("blocks/attn/k", _LAYER + "attention.k_lin", "GK D -> D GK"),
    **dense("blocks/attn/v", _LAYER + "attention.v_lin", "GK D -> D GK"),
    **dense("blocks/attn/out", _LAYER + "attention.out_lin", "D HK -> HK D"),
    **norm("blocks/attn_norm", _LAYER + "sa_layer_norm"),
    **dense("blocks/mlp/up", _LAYER + "ffn.lin1", "F D -> D F"),
    **dense("blocks/mlp/down", _LAYER + "ffn.lin2", "D F -> F D"),
    **norm("blocks/mlp_norm", _LAYER + "output_layer_norm"),
}
_POOLED = dense("head/pooler", "pre_classifier", "P D -> D P") | dense("head/classifier", "classifier", "C P -> P C")
HF_HEADS = {
    "masked_lm": bert_like.masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    "sequence": _POOLED,
    "multiple_choice": _POOLED,
    "vectors": bare(HF, "distilbert."),
    "token": bert_like.TOKEN,
    "span": bert_like.SPAN,
}
HF_PREFIX = "distilbert."
HF_IGNORE = (r"(distilbert\.)?embeddings\.position_ids",)
HF_OTHER = (r"vocab_(transform|layer_norm|projector)\..*", r"qa_outputs\..*", r"(pre_)?classifier\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED = {"masked_lm": {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}}
HF_ARCHITECTURES = bert_like.architectures("DistilBert")

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "n_layers": "layers",
    "dim": "d_model",
    "hidden_dim": "d_ff",
    "n_heads": "heads",
    "activation": "act",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "seq_classif_dropout": "classifier_dropout",
    "qa_dropout": "span_dropout",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tied",
    "pad_token_id": "pad_id",
}
HF_FIXED = {"pruned_heads": {}, "quantization_config": None, "is_encoder_decoder": False}
_HARMLESS = ("sinusoidal_pos_embds", "tie_weights_")  # how a table is first filled; a flag that nobody reads


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**read_fields(hf, _FIELDS, HF_FIXED, harmless=_HARMLESS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return write_fields(cfg, _FIELDS)
