"""ELECTRA: BERT trained as a discriminator; small ones embed in fewer dimensions (Clark et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxft.layers.block import PostNormBlock
from jaxft.layers.dense import Dense
from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import SequenceHead, TokenHead
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, encoder_flops
from jaxft.models.table import check_sizes, dense, norm, read_fields

MODEL_TYPE = "electra"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' ElectraConfig, which hub files omit."""

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    layers: int = 12
    d_embed: int = 128
    d_model: int = 256
    d_ff: int = 1024
    heads: int = 4
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None  # None: as `dropout`
    eps: float = 1e-12
    init_std: float = 0.02
    pad_id: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocab", "positions", "types", "layers", "d_embed", "d_model", "d_ff", "heads")
        check_sizes(self, *sizes, acts=ACTIVATIONS)


TINY = Config(vocab=99, positions=40, layers=2, d_embed=16, d_model=32, d_ff=64, heads=4)
VARIANTS: dict[str, Config] = {}


class Embedding(nnx.Module):
    """Word + position + token type in d_embed dimensions, projected to d_model where that differs."""

    def __init__(self, cfg: Config):
        self.text = TextEmbed(
            vocab=cfg.vocab,
            positions=cfg.positions,
            types=cfg.types,
            d_model=cfg.d_embed,
            eps=cfg.eps,
            dropout=cfg.dropout,
            init=Normal(cfg.init_std),
        )
        narrow = cfg.d_embed != cfg.d_model
        self.project = Dense(cfg.d_embed, cfg.d_model, ("P", "D"), Normal(cfg.init_std)) if narrow else None

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        x_BLP = self.text(batch, key, dtype)
        return x_BLP if self.project is None else self.project(x_BLP)


class Model(Trunk):
    """Projected word + position + token type, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = Embedding(cfg)
        block = PostNormBlock(
            d_model=cfg.d_model,
            d_ff=cfg.d_ff,
            heads=cfg.heads,
            act=cfg.act,
            eps=cfg.eps,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            init=Normal(cfg.init_std),
        )
        super().__init__(embed, block, _head(cfg, head, outputs), how, [Reach()] * cfg.layers)


def _head(cfg: Config, head: str, outputs: int) -> SequenceHead | TokenHead:
    init, drop = Normal(cfg.init_std), cfg.dropout if cfg.classifier_dropout is None else cfg.classifier_dropout
    if head == "sequence":
        return SequenceHead(cfg.d_model, outputs, act="gelu", drop=drop, init=init, drop_first=True)
    return TokenHead(cfg.d_model, outputs, drop=drop if head == "token" else 0.0, init=init)


def flops_per_token(cfg: Config, attended: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens."""
    return encoder_flops(layers=cfg.layers, d_model=cfg.d_model, d_ff=cfg.d_ff, attended=attended)


# ---- Hugging Face: one table, both directions ----

_LAYER = "electra.encoder.layer.{N}."
HF = {
    "embed/text/word/table": ("electra.embeddings.word_embeddings.weight", "V D"),
    "embed/text/position/table": ("electra.embeddings.position_embeddings.weight", "T D"),
    "embed/text/type/table": ("electra.embeddings.token_type_embeddings.weight", "T D"),
    **norm("embed/text/norm", "electra.embeddings.LayerNorm"),
    **dense("embed/project", "electra.embeddings_project", "D P -> P D"),
    **dense("blocks/attn/q", _LAYER + "attention.self.query", "HK D -> D HK"),
    **dense("blocks/attn/k", _LAYER + "attention.self.key", "GK D -> D GK"),
    **dense("blocks/attn/v", _LAYER + "attention.self.value", "GK D -> D GK"),
    **dense("blocks/attn/out", _LAYER + "attention.output.dense", "D HK -> HK D"),
    **norm("blocks/attn_norm", _LAYER + "attention.output.LayerNorm"),
    **dense("blocks/mlp/up", _LAYER + "intermediate.dense", "F D -> D F"),
    **dense("blocks/mlp/down", _LAYER + "output.dense", "D F -> F D"),
    **norm("blocks/mlp_norm", _LAYER + "output.LayerNorm"),
}
HF_HEADS = {
    "sequence": dense("head/pooler", "classifier.dense", "P D -> D P")
    | dense("head/classifier", "classifier.out_proj", "C P -> P C"),
    "token": dense("head/classifier", "classifier", "C D -> D C"),
    "span": dense("head/classifier", "qa_outputs", "C D -> D C"),
}
HF_PREFIX = "electra."
HF_IGNORE = (r"(electra\.)?embeddings\.position_ids",)
HF_OTHER = (
    r"(discriminator|generator)_predictions\..*",
    r"generator_lm_head\..*",
    r"qa_outputs\..*",
    r"classifier\..*",
)
HF_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
HF_TIED: dict[str, dict[str, str]] = {}
HF_ARCHITECTURES = {
    "sequence": "ElectraForSequenceClassification",
    "token": "ElectraForTokenClassification",
    "span": "ElectraForQuestionAnswering",
}

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "type_vocab_size": "types",
    "num_hidden_layers": "layers",
    "embedding_size": "d_embed",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "hidden_act": "act",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "layer_norm_eps": "eps",
    "initializer_range": "init_std",
    "pad_token_id": "pad_id",
}
# Fields that change numbers and that only one value is implemented for.
_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# Of a pooler that no head here has.
_HARMLESS = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**read_fields(hf, _FIELDS, _FIXED, harmless=_HARMLESS))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()}
