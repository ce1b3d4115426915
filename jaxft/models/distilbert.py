"""DistilBERT: BERT of half the layers, without token types and pooler (Sanh et al. 2019)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.block import PostNormBlock
from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import SequenceHead, TokenHead
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, encoder_flops
from jaxft.models.table import check_sizes, dense, norm, read_fields

MODEL_TYPE = "distilbert"
KIND = "encoder"

EPS = 1e-12  # not a field of its config.json


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
    pad_id: int = 0

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "positions", "layers", "d_model", "d_ff", "heads", acts=ACTIVATIONS)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4)
VARIANTS: dict[str, Config] = {}


class Model(Trunk):
    """Word + position, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = TextEmbed(
            vocab=cfg.vocab,
            positions=cfg.positions,
            types=cfg.types,
            d_model=cfg.d_model,
            eps=EPS,
            dropout=cfg.dropout,
            init=Normal(cfg.init_std),
        )
        block = PostNormBlock(
            d_model=cfg.d_model,
            d_ff=cfg.d_ff,
            heads=cfg.heads,
            act=cfg.act,
            eps=EPS,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            init=Normal(cfg.init_std),
        )
        super().__init__(embed, block, _head(cfg, head, outputs), how, [Reach()] * cfg.layers)


def _head(cfg: Config, head: str, outputs: int) -> SequenceHead | TokenHead:
    init = Normal(cfg.init_std)
    if head == "sequence":
        return SequenceHead(cfg.d_model, outputs, act="relu", drop=cfg.classifier_dropout, init=init)
    drop = cfg.dropout if head == "token" else cfg.span_dropout
    return TokenHead(cfg.d_model, outputs, drop=drop, init=init)


def flops_per_token(cfg: Config, attended: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens."""
    return encoder_flops(layers=cfg.layers, d_model=cfg.d_model, d_ff=cfg.d_ff, attended=attended)


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
HF_HEADS = {
    "sequence": dense("head/pooler", "pre_classifier", "P D -> D P")
    | dense("head/classifier", "classifier", "C P -> P C"),
    "token": dense("head/classifier", "classifier", "C D -> D C"),
    "span": dense("head/classifier", "qa_outputs", "C D -> D C"),
}
HF_PREFIX = "distilbert."
HF_IGNORE = (r"(distilbert\.)?embeddings\.position_ids",)
HF_OTHER = (r"vocab_(transform|layer_norm|projector)\..*", r"qa_outputs\..*", r"(pre_)?classifier\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED: dict[str, dict[str, str]] = {}
HF_ARCHITECTURES = {
    "sequence": "DistilBertForSequenceClassification",
    "token": "DistilBertForTokenClassification",
    "span": "DistilBertForQuestionAnswering",
}

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
    "pad_token_id": "pad_id",
}
_FIXED = {"pruned_heads": {}, "quantization_config": None}
_HARMLESS = ("sinusoidal_pos_embds", "tie_weights_")  # how a table is first filled; the head of the language model


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**read_fields(hf, _FIELDS, _FIXED, harmless=_HARMLESS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()}
