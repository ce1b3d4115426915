"""RoBERTa: BERT without token types in use, and with positions that begin after the padding id (Liu et al. 2019)."""

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

MODEL_TYPE = "roberta"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' RobertaConfig, which hub files omit.

    `positions` are those that a text may have: the table holds pad_id + 1 rows more, which no token takes.
    """

    vocab: int = 50265
    positions: int = 510
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
    pad_id: int = 1

    def __post_init__(self) -> None:
        check_sizes(self, *bert_like.SIZES, acts=ACTIVATIONS)

    @property
    def first_position(self) -> int:
        return self.pad_id + 1


TINY = Config(vocab=99, positions=40, types=1, layers=2, d_model=32, d_ff=64, heads=4)
VARIANTS = {"untied": dataclasses.replace(TINY, tied=False, act="relu")}


class Model(bert_like.Encoder):
    """Word + position + token type, post-norm blocks, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = bert_like.text_embed(cfg, cfg.d_model, first_position=cfg.first_position)
        super().__init__(cfg, embed, _head(cfg, head, outputs, embed), how)


def _head(cfg: Config, head: str, outputs: int, embed: TextEmbed) -> Any:
    drop = bert_like.classifier_dropout(cfg)
    if head == "masked_lm":
        return bert_like.masked_lm_head(cfg, embed, cfg.d_model, "gelu")  # whatever `act` is
    if head == "sequence":
        return SequenceHead(cfg.d_model, outputs, act="tanh", drop=drop, init=Normal(cfg.init_std), drop_first=drop)
    if head == "multiple_choice":  # with the pooler of BERT, which the others have not
        return SequenceHead(cfg.d_model, outputs, act="tanh", drop=cfg.dropout, init=Normal(cfg.init_std))
    return bert_like.token_head(cfg, head, outputs, drop=drop)


flops_per_token = bert_like.flops_per_token


# ---- Hugging Face: one table, both directions ----

HF = bert_like.table("roberta.")
HF_HEADS = {
    "masked_lm": bert_like.masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", bias="lm_head.bias"),
    "sequence": dense("head/pooler", "classifier.dense", "P D -> D P")
    | dense("head/classifier", "classifier.out_proj", "C P -> P C"),
    "multiple_choice": dense("head/pooler", "roberta.pooler.dense", "P D -> D P")
    | dense("head/classifier", "classifier", "C P -> P C"),
    "vectors": bare(HF, "roberta."),
    "token": bert_like.TOKEN,
    "span": bert_like.SPAN,
}
HF_PREFIX = "roberta."
HF_IGNORE = (r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",)
HF_OTHER = (r"lm_head\..*", r"qa_outputs\..*", r"classifier\..*", r"(roberta\.)?pooler\..*")
HF_LEGACY = bert_like.LEGACY
HF_TIED = {
    "masked_lm": {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
}
HF_ARCHITECTURES = bert_like.architectures("Roberta")


HF_FIXED = bert_like.FIXED


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    given = read_fields(hf, bert_like.FIELDS, HF_FIXED)
    if "positions" in given:
        given["positions"] -= given.get("pad_id", Config.pad_id) + 1
    return Config(**given)


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return write_fields(cfg, bert_like.FIELDS) | {"max_position_embeddings": cfg.positions + cfg.first_position}
