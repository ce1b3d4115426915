"""T5: encoder and decoder with relative positions, pre-norm without biases (Raffel et al. 2020); also 1.1 and Flan.

Version 1.0 has one table for words and logits, and scales what it is given there; 1.1 and Flan have a table of their
own for logits, though transformers 5 writes `tie_word_embeddings: true` for them all. Exports of the latter say false
and hold lm_head.weight, which both transformers 4 and 5 read rightly.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxft.layers.attention import Attention
from jaxft.layers.cross import SideBlock
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.encdec import EncDec, Side, SideEmbed, encdec_flops
from jaxft.layers.head import EosHead, TokenHead, VocabHead
from jaxft.layers.mlp import ACTIVATIONS, GatedMlp, Mlp
from jaxft.layers.norm import RmsNorm
from jaxft.layers.parameter import FanIn, Normal
from jaxft.layers.relative import RelativeBias
from jaxft.layers.stack import Execution
from jaxft.models.table import Rows, check_sizes, dense, norm, read_fields
from jaxft.registry import UserError

MODEL_TYPE = "t5"
KIND = "encdec"


@dataclass(frozen=True)
class Sizes:
    """Sizes and rates; the defaults are those of transformers' T5Config, which hub files omit.

    `positions` limits nothing: texts are cut to as many tokens where nobody says otherwise.
    """

    vocab: int = 32128
    positions: int = 512
    layers: int = 6
    decoder_layers: int = 0  # 0: as many as the encoder
    d_model: int = 512
    head_dim: int = 64
    d_ff: int = 2048
    heads: int = 8
    buckets: int = 32
    longest: int = 128
    feed_forward: str = "relu"  # the hub's name: an activation, or "gated-" and one
    dropout: float = 0.1
    classifier_dropout: float = 0.0
    eps: float = 1e-6
    init_factor: float = 1.0
    start_id: int = 0
    eos_id: int = 1
    pad_id: int = 0

    types = 0  # none: those of a pair's texts are ignored
    tied = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder_layers", self.decoder_layers or self.layers)
        sizes = ("vocab", "positions", "layers", "decoder_layers", "d_model", "head_dim", "d_ff", "heads")
        check_sizes(self, *sizes, acts=ACTIVATIONS)
        if self.buckets < 4 or self.buckets % 4 or self.longest <= self.buckets // 2:
            raise UserError(
                f"model: buckets={self.buckets} must be a multiple of 4, and longest={self.longest} above half of it"
            )

    @property
    def gated(self) -> bool:
        return self.feed_forward.startswith("gated-")

    @property
    def act(self) -> str:
        named = self.feed_forward.removeprefix("gated-")
        return "gelu_new" if self.gated and named == "gelu" else named


@dataclass(frozen=True)
class Config(Sizes):
    """`tied`: version 1.0."""

    tied: bool = True


TINY = Config(
    vocab=99, positions=40, layers=2, decoder_layers=3, d_model=16, head_dim=6, d_ff=32, heads=4,
    buckets=8, longest=20, feed_forward="gated-gelu", tied=False,
)  # fmt: skip
VARIANTS = {"1.0": dataclasses.replace(TINY, feed_forward="relu", tied=True)}


class Plain(nnx.Module):
    """A feed-forward that is not gated, one level deeper: on the hub its first kernel has another name."""

    def __init__(self, plain: Mlp):
        self.plain = plain

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        return self.plain(x_BLD, key)


class Model(EncDec):
    def __init__(self, cfg: Sizes, head: str, outputs: int, how: Execution):
        embed = TokenEmbed(cfg.vocab, cfg.d_model, Normal(cfg.init_factor))
        super().__init__(
            embed,
            _side(cfg, cfg.layers, how, causal=False),
            None if head == "token" else _side(cfg, cfg.decoder_layers, how, causal=True),
            _head(cfg, head, outputs, embed),
            how,
            start_id=cfg.start_id,
            answers=head == "seq2seq_lm",
        )


def _side(cfg: Sizes, layers: int, how: Execution, *, causal: bool) -> Side:
    relative = RelativeBias(
        cfg.heads, cfg.buckets, cfg.longest, causal=causal, init=Normal(cfg.init_factor * cfg.d_model**-0.5)
    )
    block = SideBlock(
        _attention(cfg),
        _feed_forward(cfg),
        lambda: RmsNorm(cfg.d_model, cfg.eps),
        cross=_attention(cfg) if causal else None,
        norm_last=False,
        drop=cfg.dropout,
    )
    embed = SideEmbed(drop=cfg.dropout, relative=relative)
    return Side(embed, block, layers, how, causal=causal, norm=RmsNorm(cfg.d_model, cfg.eps))


def _attention(cfg: Sizes) -> Attention:
    # Scores are not scaled: queries begin as much smaller instead.
    return Attention(
        cfg.d_model,
        cfg.heads,
        FanIn(cfg.init_factor),
        head_dim=cfg.head_dim,
        bias=False,
        scale=1.0,
        drop=cfg.dropout,
        q_init=FanIn(cfg.init_factor * cfg.head_dim**-0.5),
    )


def _feed_forward(cfg: Sizes) -> GatedMlp | Plain:
    sizes = (cfg.d_model, cfg.d_ff, cfg.act, FanIn(cfg.init_factor), False)
    return GatedMlp(*sizes, drop=cfg.dropout) if cfg.gated else Plain(Mlp(*sizes, drop=cfg.dropout))


def _head(cfg: Sizes, head: str, outputs: int, embed: TokenEmbed) -> Any:
    d, init = cfg.d_model, FanIn(cfg.init_factor)
    if head == "seq2seq_lm" and cfg.tied:
        return VocabHead(cfg.vocab, d, init=init, tied=embed.word, scale=d**-0.5)
    if head == "seq2seq_lm":
        return VocabHead(cfg.vocab, d, init=Normal(cfg.init_factor * d**-0.5), tied=None)
    if head == "sequence":
        return EosHead(d, outputs, act="tanh", drop=cfg.classifier_dropout, init=init, eos_id=cfg.eos_id)
    return TokenHead(d, outputs, drop=cfg.classifier_dropout if head == "token" else 0.0, init=init)


def flops_per_token(cfg: Sizes, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens."""
    mlp = (3 if cfg.gated else 2) * cfg.d_model * cfg.d_ff
    return encdec_flops(
        layers=cfg.layers,
        decoder_layers=cfg.decoder_layers,
        attention=4 * cfg.d_model * cfg.heads * cfg.head_dim,
        mlp=mlp,
        decoder_mlp=mlp,
        attended=attended * cfg.heads * cfg.head_dim,
        read=read,
    )


# ---- Hugging Face: one table, both directions ----


def _attention_rows(path: str, name: str) -> Rows:
    return {
        **dense(f"{path}/q", f"{name}.q", "HK D -> D HK", bias=False),
        **dense(f"{path}/k", f"{name}.k", "GK D -> D GK", bias=False),
        **dense(f"{path}/v", f"{name}.v", "GK D -> D GK", bias=False),
        **dense(f"{path}/out", f"{name}.o", "D HK -> HK D", bias=False),
    }


def _side_rows(side: str, parts: Mapping[str, str]) -> Rows:
    """The rows of the encoder or decoder; `parts`: our name of a part -> the hub's, in the hub's order."""
    rows = {
        f"{side}/embed/relative/table": (
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "T H",
        ),
        **norm(f"{side}/norm", f"{side}.final_layer_norm", bias=False),
    }
    for i, (part, name) in enumerate(parts.items()):
        path, layer = f"{side}/blocks/{part}", f"{side}.block.{{N}}.layer.{i}"
        rows |= norm(f"{path}_norm", f"{layer}.layer_norm", bias=False)
        if part != "mlp":
            rows |= _attention_rows(path, f"{layer}.{name}")
            continue
        rows |= {
            **dense(f"{path}/plain/up", f"{layer}.{name}.wi", "F D -> D F", bias=False),
            **dense(f"{path}/plain/down", f"{layer}.{name}.wo", "D F -> F D", bias=False),
            **dense(f"{path}/gate", f"{layer}.{name}.wi_0", "F D -> D F", bias=False),
            **dense(f"{path}/up", f"{layer}.{name}.wi_1", "F D -> D F", bias=False),
            **dense(f"{path}/down", f"{layer}.{name}.wo", "D F -> F D", bias=False),
        }
    return rows


_BARE = {
    "embed/word/table": ("shared.weight", "V D"),
    **_side_rows("encoder", {"attn": "SelfAttention", "mlp": "DenseReluDense"}),
    **_side_rows("decoder", {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}),
}
# Two of the heads are classes around a bare model, the others have its parts themselves.
HF_PREFIX = "transformer."
HF = {path: (HF_PREFIX + name, layout) for path, (name, layout) in _BARE.items()}
HF_HEADS = {
    "seq2seq_lm": _BARE | {"head/unembed/table": ("lm_head.weight", "V D")},
    "sequence": dense("head/pooler", "classification_head.dense", "P D -> D P")
    | dense("head/classifier", "classification_head.out_proj", "C P -> P C"),
    "token": dense("head/classifier", "classifier", "C D -> D C"),
    "span": _BARE | dense("head/classifier", "qa_outputs", "C D -> D C"),
}
# Old checkpoints have a bias of cross-attention that no version of transformers reads.
HF_IGNORE = (r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
HF_OTHER = (
    *(r"lm_head\.weight", r"classification_head\..*", r"classifier\..*", r"qa_outputs\..*"),
    r"(transformer\.)?decoder\..*",  # of a head on the encoder alone
)
HF_LEGACY: dict[str, str] = {}
_COPIES = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}
_PREFIXED_COPIES = {HF_PREFIX + copy: HF_PREFIX + of for copy, of in _COPIES.items()}
HF_TIED = {
    "seq2seq_lm": _COPIES | {"lm_head.weight": "shared.weight"},
    "sequence": _PREFIXED_COPIES,
    "token": _PREFIXED_COPIES,
    "span": _COPIES,
}
HF_LENT = {"seq2seq_lm": {"lm_head.weight": "shared.weight"}}
HF_ARCHITECTURES = {
    "seq2seq_lm": "T5ForConditionalGeneration",
    "sequence": "T5ForSequenceClassification",
    "token": "T5ForTokenClassification",
    "span": "T5ForQuestionAnswering",
}

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "n_positions": "positions",
    "num_layers": "layers",
    "num_decoder_layers": "decoder_layers",
    "d_model": "d_model",
    "d_kv": "head_dim",
    "d_ff": "d_ff",
    "num_heads": "heads",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "longest",
    "feed_forward_proj": "feed_forward",
    "dropout_rate": "dropout",
    "classifier_dropout": "classifier_dropout",
    "layer_norm_epsilon": "eps",
    "initializer_factor": "init_factor",
    "decoder_start_token_id": "start_id",
    "eos_token_id": "eos_id",
    "pad_token_id": "pad_id",
}
HF_FIXED = {"is_decoder": False, "add_cross_attention": False, "pruned_heads": {}, "quantization_config": None}
# `is_encoder_decoder` follows from the head; the others are read below.
_HARMLESS = ("is_encoder_decoder", "is_gated_act", "dense_act_fn", "scale_decoder_outputs", "tie_word_embeddings")


def read_sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Sizes`. Raises UserError for every field that nobody reads, and one that contradicts another."""
    given = read_fields(hf, _FIELDS, HF_FIXED, harmless=_HARMLESS)
    given = {ours: value for ours, value in given.items() if value is not None}
    sizes = Sizes(**given)
    for name, follows in (("is_gated_act", sizes.gated), ("dense_act_fn", sizes.act)):
        if hf.get(name, follows) != follows:
            raise UserError(f"config.json: {name}={hf[name]!r} contradicts feed_forward_proj={sizes.feed_forward!r}")
    return given


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    tied = hf.get("tie_word_embeddings") is not False
    scaled = hf.get("scale_decoder_outputs", tied)
    if scaled and not tied:
        raise UserError("config.json: scale_decoder_outputs=True beside tie_word_embeddings=False is not supported")
    return Config(**read_sizes(hf), tied=scaled)


def config_to_hf(cfg: Sizes) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    fields = {name: values[ours] for name, ours in _FIELDS.items()}
    return fields | {"tie_word_embeddings": cfg.tied, "scale_decoder_outputs": cfg.tied}
