"""ELECTRA: BERT trained as a discriminator; small ones embed in fewer dimensions (Clark et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxft.layers.dense import Dense
from jaxft.layers.head import DetectionHead, SequenceHead
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.models import bert_like
from jaxft.models.table import bare, check_sizes, dense, read_fields, write_fields

MODEL_TYPE = "electra"
KIND = "encoder"
SUMMARY_DROPOUT = 0.1  # of the pooler that multiple choice has


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
    tied: bool = True  # of a head over the vocabulary: its table is the embedding's
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, *bert_like.SIZES, "d_embed", acts=ACTIVATIONS)


TINY = Config(vocab=99, positions=40, layers=2, d_embed=16, d_model=32, d_ff=64, heads=4)
VARIANTS = {
    "untied": dataclasses.replace(TINY, tied=False, act="relu"),
    "wide": dataclasses.replace(TINY, d_embed=32),
}


class Embedding(nnx.Module):
    """Word + position + token type in d_embed dimensions, projected to d_model where that differs."""

    def __init__(self, cfg: Config):
        self.text = bert_like.text_embed(cfg, cfg.d_embed)
        self.most = self.text.most
        narrow = cfg.d_embed != cfg.d_model
        self.project = Dense(cfg.d_embed, cfg.d_model, ("P", "D"), Normal(cfg.init_std)) if narrow else None

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        x_BLP = self.text(batch, key, dtype)
        return x_BLP if self.project is None else self.project(x_BLP)


class Model(bert_like.Encoder):
    """Projected word + position + token type, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = Embedding(cfg)
        super().__init__(cfg, embed, _head(cfg, head, outputs, embed), how)


def _head(cfg: Config, head: str, outputs: int, embed: Embedding) -> Any:
    drop = bert_like.classifier_dropout(cfg)
    if head == "masked_lm":  # the generator's
        return bert_like.masked_lm_head(cfg, embed.text, cfg.d_embed, "gelu")  # whatever `act` is
    if head == "sequence":
        return SequenceHead(cfg.d_model, outputs, act="gelu", drop=drop, init=Normal(cfg.init_std), drop_first=drop)
    if head == "detection":  # the discriminator's
        return DetectionHead(cfg.d_model, act=cfg.act, init=Normal(cfg.init_std))
    if head == "multiple_choice":
        return SequenceHead(cfg.d_model, outputs, act="gelu", drop=SUMMARY_DROPOUT, init=Normal(cfg.init_std))
    return bert_like.token_head(cfg, head, outputs, drop=drop)


flops_per_token = bert_like.flops_per_token


# ---- Hugging Face: one table, both directions ----

HF = bert_like.table("electra.", embed="embed/text") | dense(
    "embed/project", "electra.embeddings_project", "D P -> P D"
)
HF_HEADS = {
    "masked_lm": bert_like.masked_lm(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"
    ),
    "detection": dense("head/transform/dense", "discriminator_predictions.dense", "P D -> D P")
    | dense("head/classifier", "discriminator_predictions.dense_prediction", "C D -> D C"),
    "sequence": dense("head/pooler", "classifier.dense", "P D -> D P")
    | dense("head/classifier", "classifier.out_proj", "C P -> P C"),
    "multiple_choice": dense("head/pooler", "sequence_summary.summary", "P D -> D P")
    | dense("head/classifier", "classifier", "C P -> P C"),
    "vectors": bare(HF, "electra."),
    "token": bert_like.TOKEN,
    "span": bert_like.SPAN,
}
HF_PREFIX = "electra."
HF_IGNORE = (r"(electra\.)?embeddings\.position_ids",)
HF_OTHER = (
    r"(discriminator|generator)_predictions\..*",
    r"generator_lm_head\..*",
    r"qa_outputs\..*",
    r"classifier\..*",
    r"sequence_summary\..*",
)
HF_LEGACY = bert_like.LEGACY
HF_TIED = {"masked_lm": {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}}
HF_ARCHITECTURES = {**bert_like.architectures("Electra"), "detection": "ElectraForPreTraining"}

_FIELDS = {**bert_like.FIELDS, "embedding_size": "d_embed"}
HF_FIXED = bert_like.FIXED | {
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
    "summary_last_dropout": SUMMARY_DROPOUT,
}


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    return Config(**read_fields(hf, _FIELDS, HF_FIXED))


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return write_fields(cfg, _FIELDS)
