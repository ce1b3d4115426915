"""DeBERTa v2 and v3: an encoder whose attention keeps content and distance apart (He et al. 2020, 2021).

Of v3's checkpoints the hub knows no model type of their own: they are called deberta-v2.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxft.layers.attention import Sight
from jaxft.layers.block import PostNormBlock
from jaxft.layers.conv import ConvBeside
from jaxft.layers.disentangled import TERMS, Buckets, DisentangledAttention, Distances, RelativeSight
from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import SequenceHead, TokenHead, Transform, VectorHead, VocabHead
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, encoder_flops
from jaxft.models.table import bare, check_sizes, dense, norm, read_fields
from jaxft.registry import UserError, nearest

MODEL_TYPE = "deberta-v2"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' DebertaV2Config, which hub files omit."""

    vocab: int = 128100
    positions: int = 512
    types: int = 0
    layers: int = 24
    d_model: int = 1536
    d_ff: int = 6144
    heads: int = 24
    act: str = "gelu"
    absolute: bool = True  # learned positions are added to the words
    terms: Sequence[str] = ()  # of layers.disentangled.TERMS; (): plain attention
    share_key: bool = False  # distances are projected as contents are
    buckets: int = -1  # below 1: a vector for each distance
    furthest: int = -1  # the longest distance that differs from longer ones; below 1: as `positions`
    norm_distances: bool = False
    conv: int = 0  # taps of a convolution beside the first layer; 0: none
    conv_act: str = "tanh"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None  # None: as `dropout`
    pooler_dropout: float = 0.0
    pooler_act: str = "gelu"
    eps: float = 1e-7
    init_std: float = 0.02
    pad_id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(sorted(self.terms)))  # from a file it may come as a list
        check_sizes(self, "vocab", "positions", "layers", "d_model", "d_ff", "heads", acts=ACTIVATIONS)
        for name in ("conv_act", "pooler_act"):
            if getattr(self, name) not in ACTIVATIONS:
                value, known = getattr(self, name), ", ".join(ACTIVATIONS)
                raise UserError(f"model: {name}={value!r} is not known; known: {known}{nearest(value, ACTIVATIONS)}")
        if unknown := set(self.terms) - set(TERMS):
            raise UserError(f"model: terms={self.terms!r}: {', '.join(sorted(unknown))}; known: {', '.join(TERMS)}")
        if self.norm_distances and not self.terms:
            raise UserError("model: norm_distances=True, but without terms there are no distances")
        if self.table.furthest and self.table.furthest < self.buckets // 2 + 2:
            raise UserError(
                f"model: buckets={self.buckets} are more than {self.table.furthest} distances fill; set furthest higher"
            )

    @property
    def table(self) -> Buckets:
        furthest = self.furthest if self.furthest > 0 else self.positions
        return Buckets(self.buckets, furthest) if self.buckets > 0 else Buckets(furthest, 0)


# Every parameter that some model of the family has; the logarithm begins at distance 9, the end is beyond 30.
TINY = Config(
    vocab=99,
    positions=40,
    types=2,
    layers=2,
    d_model=32,
    d_ff=64,
    heads=4,
    terms=("c2p", "p2c"),
    buckets=16,
    furthest=30,
    norm_distances=True,
    conv=3,
)
_PLAIN = dataclasses.replace(TINY, conv=0, norm_distances=False)
# Every way in which a Config of this family can compute otherwise, for the tests of parity.
VARIANTS = {
    "v3": dataclasses.replace(TINY, share_key=True, absolute=False, types=0, furthest=-1, conv=0),
    "v2-xlarge": dataclasses.replace(TINY, share_key=True, absolute=False, types=0, conv=5, conv_act="gelu"),
    "c2p": dataclasses.replace(_PLAIN, terms=("c2p",), buckets=-1, furthest=-1),
    "p2c": dataclasses.replace(_PLAIN, terms=("p2c",), buckets=-1, furthest=12, pooler_act="tanh"),
    "shared-c2p": dataclasses.replace(_PLAIN, terms=("c2p",), share_key=True, buckets=5),
    "absolute": dataclasses.replace(_PLAIN, terms=()),
}


@dataclass(frozen=True)
class First(Reach):
    """That of a first layer beside which there is a convolution."""


class Model(Trunk):
    """Words (+ positions, + token types), post-norm blocks with disentangled attention, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        init = Normal(cfg.init_std)
        embed = TextEmbed(
            vocab=cfg.vocab,
            positions=cfg.positions if cfg.absolute else 0,
            types=cfg.types,
            d_model=cfg.d_model,
            eps=cfg.eps,
            dropout=cfg.dropout,
            init=init,
        )
        block = PostNormBlock(
            d_model=cfg.d_model,
            d_ff=cfg.d_ff,
            heads=cfg.heads,
            act=cfg.act,
            eps=cfg.eps,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            init=init,
            attn=_attention(cfg) if cfg.terms else None,
        )
        first = First() if cfg.conv else Reach()
        reach = [first, *[Reach()] * (cfg.layers - 1)]
        super().__init__(embed, block, _head(cfg, head, outputs, embed), how, reach)
        eps = cfg.eps if cfg.norm_distances else None
        self.distances = Distances(cfg.table, cfg.d_model, init, eps=eps) if cfg.terms else None
        self.conv = _conv(cfg) if cfg.conv else None

    def sight(self, reach: Reach, batch: Mapping[str, jax.Array]) -> Sight:
        seen = super().sight(reach, batch)
        return seen if self.distances is None else RelativeSight(seen.where, distance_TD=self.distances(self.how.dtype))

    def layer(
        self, reach: Reach, block: Any, x_BLD: jax.Array, sight: Sight, key: jax.Array | None, at_BS: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        y_BLD, aside = super().layer(reach, block, x_BLD, sight, key, at_BS)
        if self.conv is None or not isinstance(reach, First):
            return y_BLD, aside
        key_conv = None if key is None else jax.random.fold_in(key, 1)
        return self.conv(x_BLD, y_BLD, sight.where, key_conv, at_BS), aside


def _attention(cfg: Config) -> DisentangledAttention:
    return DisentangledAttention(
        cfg.d_model,
        cfg.heads,
        Normal(cfg.init_std),
        buckets=cfg.table,
        terms=cfg.terms,
        share=cfg.share_key,
        drop=cfg.attention_dropout,
        drop_distance=cfg.dropout,
    )


def _conv(cfg: Config) -> ConvBeside:
    if cfg.conv % 2 == 0:
        raise UserError(f"model: conv={cfg.conv}: only an odd number of taps leaves the row as long as it was")
    init = Normal(cfg.init_std)
    return ConvBeside(cfg.d_model, cfg.conv, act=cfg.conv_act, eps=cfg.eps, drop=cfg.dropout, init=init)


def _head(cfg: Config, head: str, outputs: int, embed: TextEmbed) -> Any:
    init = Normal(cfg.init_std)
    if head == "masked_lm":
        transform = Transform(cfg.d_model, cfg.d_model, cfg.act, LayerNorm(cfg.d_model, cfg.eps), init)
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=embed.word, bias=True, transform=transform)
    if head == "vectors":
        return VectorHead()
    if head in ("sequence", "multiple_choice"):
        drop = cfg.dropout if cfg.classifier_dropout is None else cfg.classifier_dropout
        first = cfg.pooler_dropout
        return SequenceHead(cfg.d_model, outputs, act=cfg.pooler_act, drop=drop, init=init, drop_first=first)
    return TokenHead(cfg.d_model, outputs, drop=cfg.dropout if head == "token" else 0.0, init=init)


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens.

    A term of distances counts as one more product of queries and keys.
    """
    pairs = attended * (1 + len(cfg.terms) / 2)
    return encoder_flops(layers=cfg.layers, d_model=cfg.d_model, d_ff=cfg.d_ff, attended=pairs, read=read)


# ---- Hugging Face: one table, both directions ----

_LAYER = "deberta.encoder.layer.{N}."
HF = {
    "embed/word/table": ("deberta.embeddings.word_embeddings.weight", "V D"),
    "embed/position/table": ("deberta.embeddings.position_embeddings.weight", "T D"),
    "embed/type/table": ("deberta.embeddings.token_type_embeddings.weight", "T D"),
    **norm("embed/norm", "deberta.embeddings.LayerNorm"),
    "distances/table": ("deberta.encoder.rel_embeddings.weight", "T D"),
    **norm("distances/norm", "deberta.encoder.LayerNorm"),
    **dense("conv", "deberta.encoder.conv.conv", "P D T -> T D P"),
    **norm("conv/norm", "deberta.encoder.conv.LayerNorm"),
    **dense("blocks/attn/q", _LAYER + "attention.self.query_proj", "HK D -> D HK"),
    **dense("blocks/attn/k", _LAYER + "attention.self.key_proj", "GK D -> D GK"),
    **dense("blocks/attn/v", _LAYER + "attention.self.value_proj", "GK D -> D GK"),
    **dense("blocks/attn/pos_k", _LAYER + "attention.self.pos_key_proj", "GK D -> D GK"),
    **dense("blocks/attn/pos_q", _LAYER + "attention.self.pos_query_proj", "HK D -> D HK"),
    **dense("blocks/attn/out", _LAYER + "attention.output.dense", "D HK -> HK D"),
    **norm("blocks/attn_norm", _LAYER + "attention.output.LayerNorm"),
    **dense("blocks/mlp/up", _LAYER + "intermediate.dense", "F D -> D F"),
    **dense("blocks/mlp/down", _LAYER + "output.dense", "D F -> F D"),
    **norm("blocks/mlp_norm", _LAYER + "output.LayerNorm"),
}
_POOLED = dense("head/pooler", "pooler.dense", "P D -> D P") | dense("head/classifier", "classifier", "C P -> P C")
HF_HEADS = {
    "sequence": _POOLED,
    "multiple_choice": _POOLED,
    "vectors": bare(HF, "deberta."),
    "token": dense("head/classifier", "classifier", "C D -> D C"),
    "span": dense("head/classifier", "qa_outputs", "C D -> D C"),
    "masked_lm": {
        **dense("head/transform/dense", "cls.predictions.transform.dense", "P D -> D P"),
        **norm("head/transform/norm", "cls.predictions.transform.LayerNorm"),
        "head/bias": ("cls.predictions.bias", "V"),
    },
}
HF_PREFIX = "deberta."
# v3's files hold absolute positions that the network does not add.
HF_IGNORE = (r"(deberta\.)?embeddings\.position_ids", r"(deberta\.)?embeddings\.position_embeddings\.weight")
HF_OTHER = (
    r"(cls|lm_predictions|mask_predictions)\..*",
    r"qa_outputs\..*",
    r"classifier\..*",
    r"pooler\..*",
)
# The head of v3's files and of `legacy` false, which computes what the one of `legacy` true does.
HF_LEGACY = {
    f"lm_predictions.lm_head.{theirs}": f"cls.predictions.{ours}"
    for theirs, ours in {
        "dense.weight": "transform.dense.weight",
        "dense.bias": "transform.dense.bias",
        "LayerNorm.weight": "transform.LayerNorm.weight",
        "LayerNorm.bias": "transform.LayerNorm.bias",
        "bias": "bias",
    }.items()
}
HF_TIED = {
    "masked_lm": {
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
}
HF_ARCHITECTURES = {
    "sequence": "DebertaV2ForSequenceClassification",
    "token": "DebertaV2ForTokenClassification",
    "span": "DebertaV2ForQuestionAnswering",
    "masked_lm": "DebertaV2ForMaskedLM",
    "multiple_choice": "DebertaV2ForMultipleChoice",
    "vectors": "DebertaV2Model",
}

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "type_vocab_size": "types",
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "hidden_act": "act",
    "position_biased_input": "absolute",
    "share_att_key": "share_key",
    "position_buckets": "buckets",
    "max_relative_positions": "furthest",
    "conv_kernel_size": "conv",
    "conv_act": "conv_act",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "cls_dropout": "classifier_dropout",
    "pooler_dropout": "pooler_dropout",
    "pooler_hidden_act": "pooler_act",
    "layer_norm_eps": "eps",
    "initializer_range": "init_std",
    "pad_token_id": "pad_id",
}
# Fields that change numbers and that only one value is implemented for.
HF_FIXED = {
    "conv_groups": 1,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
_READ_HERE = ("relative_attention", "pos_att_type", "norm_rel_ebd")
_NAMES_ONLY = ("legacy",)  # of the tensors of the masked-LM head: see HF_LEGACY


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    width, heads = hf.get("hidden_size", Config.d_model), hf.get("num_attention_heads", Config.heads)
    fixed = {"embedding_size": width, "pooler_hidden_size": width, "attention_head_size": width // heads, **HF_FIXED}
    given = read_fields(hf, _FIELDS, fixed, harmless=(*_READ_HERE, *_NAMES_ONLY))
    return Config(**given, terms=_terms(hf), norm_distances=_norm(hf))


def _terms(hf: Mapping[str, Any]) -> tuple[str, ...]:
    listed = hf.get("pos_att_type") or []
    listed = listed.lower().split("|") if isinstance(listed, str) else listed
    terms = tuple(name.strip() for name in listed if name.strip() not in ("", "none"))
    if bool(terms) != bool(hf.get("relative_attention")):
        raise UserError(
            f"config.json of a deberta-v2 model: relative_attention={hf.get('relative_attention')!r} with "
            f"pos_att_type={hf.get('pos_att_type')!r} is not supported: one needs the other"
        )
    return terms


def _norm(hf: Mapping[str, Any]) -> bool:
    kind = hf.get("norm_rel_ebd") or "none"
    if kind not in ("none", "layer_norm"):
        raise UserError(
            f"config.json of a deberta-v2 model: norm_rel_ebd={kind!r} is not supported; only layer_norm is"
        )
    return kind == "layer_norm"


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()} | {
        "relative_attention": bool(cfg.terms),
        "pos_att_type": list(cfg.terms),
        "norm_rel_ebd": "layer_norm" if cfg.norm_distances else "none",
        "legacy": True,
    }
