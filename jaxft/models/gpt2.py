"""GPT-2: a decoder with learned positions and one fused projection for query, key and value (Radford et al. 2019)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import LastHead, TokenHead, VocabHead
from jaxft.layers.mlp import ACTIVATIONS, Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, trunk_flops
from jaxft.models.llama_like import TOKEN_DROPOUT
from jaxft.models.table import check_sizes, dense, norm, read_fields, write_fields

MODEL_TYPE = "gpt2"
KIND = "decoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' GPT2Config, which hub files omit."""

    vocab: int = 50257
    positions: int = 1024
    layers: int = 12
    d_model: int = 768
    d_ff: int = 0  # 0: 4 * d_model
    heads: int = 12
    act: str = "gelu_new"
    dropout: float = 0.1  # of what a block adds
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1
    scale_attention: bool = True  # scores times head_dim ** -0.5
    scale_by_layer: bool = False  # and divided by the layer's number, from 1
    upcast_attention: bool = False  # how transformers rounds; said back to it, no number here: softmax is in float32
    eps: float = 1e-5
    init_std: float = 0.02
    tied: bool = True
    pad_id: int | None = None  # None: the tokenizer's

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "positions", "layers", "d_model", "heads", acts=ACTIVATIONS)
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4, tied=False, pad_id=0)
VARIANTS = {
    "tied-scaled-by-layer": replace(TINY, tied=True, scale_by_layer=True, upcast_attention=True, d_ff=0),
    "unscaled": replace(TINY, scale_attention=False),
}


class Model(Trunk):
    """Word + position, pre-norm blocks, a norm, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        init = Normal(cfg.init_std)
        # The residual stream sums two parts a layer; so its variance does not grow with their number.
        added = Normal(cfg.init_std / math.sqrt(2 * cfg.layers))
        embed = TextEmbed(
            vocab=cfg.vocab,
            positions=cfg.positions,
            types=cfg.types,
            d_model=cfg.d_model,
            eps=None,
            dropout=cfg.embed_dropout,
            init=init,
        )
        scale = None if cfg.scale_attention else 1.0
        attn = Attention(cfg.d_model, cfg.heads, init, out_init=added, scale=scale, drop=cfg.attention_dropout)
        mlp = Mlp(cfg.d_model, cfg.d_ff, cfg.act, init, down_init=added)
        block = PreNormBlock(attn, mlp, lambda: LayerNorm(cfg.d_model, cfg.eps), drop=cfg.dropout)
        reach = [Reach(causal=True, scale=1 / (1 + i) if cfg.scale_by_layer else 1.0) for i in range(cfg.layers)]
        super().__init__(embed, block, _head(cfg, head, outputs, embed), how, reach, LayerNorm(cfg.d_model, cfg.eps))


def _head(cfg: Config, head: str, outputs: int, embed: TextEmbed) -> VocabHead | LastHead | TokenHead:
    init = Normal(cfg.init_std)
    if head == "causal_lm":
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=embed.word if cfg.tied else None)
    if head == "sequence":
        return LastHead(cfg.d_model, outputs, init=init)
    return TokenHead(cfg.d_model, outputs, drop=TOKEN_DROPOUT if head == "token" else 0.0, init=init)


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward."""
    return trunk_flops(
        layers=cfg.layers,
        queries=2 * cfg.d_model**2,
        keys=2 * cfg.d_model**2,
        mlp=2 * cfg.d_model * cfg.d_ff,
        attended=attended * cfg.d_model / 2,  # a causal query sees half of the others, on average
        read=read,
    )


# ---- Hugging Face: one table, both directions ----

_LAYER = "transformer.h.{N}."
HF = {  # its kernels are stored [in, out]
    "embed/word/table": ("transformer.wte.weight", "V D"),
    "embed/position/table": ("transformer.wpe.weight", "T D"),
    **norm("blocks/attn_norm", _LAYER + "ln_1"),
    **dense("blocks/attn/q", _LAYER + "attn.c_attn", "D +HK"),
    **dense("blocks/attn/k", _LAYER + "attn.c_attn", "D +GK"),
    **dense("blocks/attn/v", _LAYER + "attn.c_attn", "D +GK"),
    **dense("blocks/attn/out", _LAYER + "attn.c_proj", "HK D"),
    **norm("blocks/mlp_norm", _LAYER + "ln_2"),
    **dense("blocks/mlp/up", _LAYER + "mlp.c_fc", "D F"),
    **dense("blocks/mlp/down", _LAYER + "mlp.c_proj", "F D"),
    **norm("norm", "transformer.ln_f"),
}
HF_HEADS = {
    "causal_lm": {"head/unembed/table": ("lm_head.weight", "V D")},
    "sequence": dense("head/classifier", "score", "C D -> D C", bias=False),
    "token": dense("head/classifier", "classifier", "C D -> D C"),
    "span": dense("head/classifier", "qa_outputs", "C D -> D C"),
}
HF_PREFIX = "transformer."
HF_IGNORE = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)  # masks, which older versions saved
HF_OTHER = (r"lm_head\.weight", r"score\..*", r"classifier\..*", r"qa_outputs\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED = {"causal_lm": {"lm_head.weight": "transformer.wte.weight"}}
HF_ARCHITECTURES = {
    "causal_lm": "GPT2LMHeadModel",
    "sequence": "GPT2ForSequenceClassification",
    "token": "GPT2ForTokenClassification",
    "span": "GPT2ForQuestionAnswering",
}

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "n_positions": "positions",
    "n_layer": "layers",
    "n_embd": "d_model",
    "n_inner": "d_ff",
    "n_head": "heads",
    "activation_function": "act",
    "resid_pdrop": "dropout",
    "embd_pdrop": "embed_dropout",
    "attn_pdrop": "attention_dropout",
    "scale_attn_weights": "scale_attention",
    "scale_attn_by_inverse_layer_idx": "scale_by_layer",
    "reorder_and_upcast_attn": "upcast_attention",
    "layer_norm_epsilon": "eps",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tied",
    "pad_token_id": "pad_id",
}
# Fields that change numbers and that only one value is implemented for.
HF_FIXED = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
_HARMLESS = (
    "n_ctx",  # as n_positions, in older files
    "is_decoder",
    # Of a head for multiple choice, which is none of ours.
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    given = read_fields(hf, _FIELDS, HF_FIXED, harmless=_HARMLESS)
    given["d_ff"] = given.get("d_ff") or 0  # null: as where the file leaves it out
    return Config(**given)


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return {name: value for name, value in write_fields(cfg, _FIELDS).items() if value is not None}
