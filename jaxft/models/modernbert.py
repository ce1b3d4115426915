"""ModernBERT: an encoder of pre-norm blocks with rotary positions, most of which see a window (Warner et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.head import FirstHead, TokenHead, Transform, VectorHead, VocabHead, segment_mean
from jaxft.layers.mlp import ACTIVATIONS, GatedMlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.rope import Rope
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, trunk_flops
from jaxft.models import bert_like
from jaxft.models.table import Rows, bare, check_known, check_sizes, dense, norm, read_fields, write_fields
from jaxft.registry import UserError

MODEL_TYPE = "modernbert"
KIND = "encoder"
WHOLE = ("sequence", "multiple_choice")  # heads that judge whole texts

GLOBAL, LOCAL = "full_attention", "sliding_attention"
_THETAS = {GLOBAL: "global_theta", LOCAL: "local_theta"}


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' ModernBertConfig, which hub files omit.

    Layers 0, global_every, 2 * global_every and so on see the whole text; the others as many tokens on either side as
    half of `window`.
    """

    vocab: int = 50368
    positions: int = 8192
    layers: int = 22
    d_model: int = 768
    d_ff: int = 1152
    heads: int = 12
    window: int = 128
    global_every: int = 3
    global_theta: float = 160000.0
    local_theta: float = 10000.0
    act: str = "gelu"
    head_act: str = "gelu"
    pooling: str = "cls"  # what a text is classified by: its first token, or "mean"
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    vocab_bias: bool = True
    dropout: float = 0.0  # of embeddings
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    eps: float = 1e-5
    init_std: float = 0.02
    tied: bool = True  # of a head over the vocabulary: its table is the embedding's
    pad_id: int = 50283

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        sizes = ("vocab", "positions", "d_model", "d_ff", "heads", "global_every")
        check_sizes(self, *sizes, acts=ACTIVATIONS)
        check_known("head_act", self.head_act, ACTIVATIONS)
        check_known("pooling", self.pooling, ("cls", "mean"))
        for name in ("layers", "window"):
            if getattr(self, name) < 2:
                raise UserError(f"model: {name}={getattr(self, name)} must be 2 or more")

    @property
    def layer_types(self) -> list[str]:
        return layer_types(self.layers, self.global_every)


def layer_types(layers: int, every: int) -> list[str]:
    """Under the names of the hub."""
    return [LOCAL if i % every else GLOBAL for i in range(layers)]


TINY = Config(vocab=99, positions=40, layers=5, d_model=32, d_ff=48, heads=4, window=8, pad_id=0)
_BIASED = dict(norm_bias=True, attention_bias=True, mlp_bias=True, head_bias=True)
VARIANTS = {
    "untied": dataclasses.replace(TINY, tied=False, act="silu", head_act="relu", window=5, **_BIASED),
    "plain": dataclasses.replace(TINY, vocab_bias=False, global_every=2, global_theta=300.0, local_theta=20.0),
    "sequence-mean": dataclasses.replace(TINY, pooling="mean"),
}


class Model(Trunk):
    """Normed words, pre-norm blocks of which the lowest has no norm before its attention, a norm, a head."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        embed = TokenEmbed(cfg.vocab, cfg.d_model, Normal(cfg.init_std), norm=_norm(cfg), drop=cfg.dropout)
        turning = {
            kind: Rope.of(rope, head_dim=cfg.d_model // cfg.heads, positions=cfg.positions)
            for kind, rope in _ropes(cfg).items()
        }
        window = {GLOBAL: 0, LOCAL: cfg.window // 2}
        super().__init__(
            embed,
            _block(cfg),
            _head(cfg, head, outputs, embed),
            how,
            [Reach(window=window[kind], rope=turning[kind]) for kind in cfg.layer_types],
            _norm(cfg),
            first=_block(cfg, before=False),
            pool=segment_mean if head in WHOLE and cfg.pooling == "mean" else None,
        )


def _norm(cfg: Config) -> LayerNorm:
    return LayerNorm(cfg.d_model, cfg.eps, cfg.norm_bias)


def _block(cfg: Config, *, before: bool = True) -> PreNormBlock:
    init = Normal(cfg.init_std)
    attn = Attention(cfg.d_model, cfg.heads, init, bias=cfg.attention_bias, drop=cfg.attention_dropout)
    mlp = GatedMlp(cfg.d_model, cfg.d_ff, cfg.act, init, cfg.mlp_bias)
    return PreNormBlock(attn, mlp, lambda: _norm(cfg), drop=cfg.attention_dropout, mlp_drop=0.0, before=before)


def _head(cfg: Config, head: str, outputs: int, embed: TokenEmbed) -> Any:
    if head == "vectors":
        return VectorHead()
    init = Normal(cfg.init_std)
    transform = Transform(cfg.d_model, cfg.d_model, cfg.head_act, _norm(cfg), init, cfg.head_bias)
    if head == "masked_lm":
        tied = embed.word if cfg.tied else None
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=tied, bias=cfg.vocab_bias, transform=transform)
    kind = FirstHead if head in WHOLE else TokenHead
    return kind(cfg.d_model, outputs, drop=cfg.classifier_dropout, init=init, transform=transform)


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens where nothing narrows it."""
    near = min(attended, 2 * (cfg.window // 2) + 1)
    seen = [attended if kind == GLOBAL else near for kind in cfg.layer_types]
    return trunk_flops(
        layers=cfg.layers,
        queries=2 * cfg.d_model**2,
        keys=2 * cfg.d_model**2,
        mlp=3 * cfg.d_model * cfg.d_ff,
        attended=sum(seen) / cfg.layers * cfg.d_model,
        read=read,
    )


# ---- Hugging Face: one table, both directions ----


def _layer(path: str, name: str) -> Rows:
    return {
        **dense(f"{path}/attn/q", f"{name}.attn.Wqkv", "+HK D -> D HK"),
        **dense(f"{path}/attn/k", f"{name}.attn.Wqkv", "+GK D -> D GK"),
        **dense(f"{path}/attn/v", f"{name}.attn.Wqkv", "+GK D -> D GK"),
        **dense(f"{path}/attn/out", f"{name}.attn.Wo", "D HK -> HK D"),
        **norm(f"{path}/mlp_norm", f"{name}.mlp_norm"),
        **dense(f"{path}/mlp/gate", f"{name}.mlp.Wi", "+F D -> D F"),
        **dense(f"{path}/mlp/up", f"{name}.mlp.Wi", "+F D -> D F"),
        **dense(f"{path}/mlp/down", f"{name}.mlp.Wo", "D F -> F D"),
    }


HF = {
    "embed/word/table": ("model.embeddings.tok_embeddings.weight", "V D"),
    **norm("embed/norm", "model.embeddings.norm"),
    **_layer("first", "model.layers.0"),
    **norm("blocks/attn_norm", "model.layers.{N+1}.attn_norm"),
    **_layer("blocks", "model.layers.{N+1}"),
    **norm("norm", "model.final_norm"),
}
_TRANSFORM = dense("head/transform/dense", "head.dense", "P D -> D P") | norm("head/transform/norm", "head.norm")
HF_HEADS = {
    "masked_lm": {
        **_TRANSFORM,
        "head/bias": ("decoder.bias", "V"),
        "head/unembed/table": ("decoder.weight", "V D"),
        "head/unembed/bias": ("decoder.bias", "V"),
    },
    "sequence": _TRANSFORM | bert_like.TOKEN,
    "multiple_choice": _TRANSFORM | bert_like.TOKEN,
    "vectors": bare(HF, "model."),
    "token": _TRANSFORM | bert_like.TOKEN,
    "span": _TRANSFORM | bert_like.TOKEN,
}
HF_PREFIX = "model."
HF_IGNORE: tuple[str, ...] = ()
HF_OTHER = (r"head\..*", r"decoder\..*", r"classifier\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED = {"masked_lm": {"decoder.weight": "model.embeddings.tok_embeddings.weight"}}
HF_ARCHITECTURES = bert_like.architectures("ModernBert")

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "local_attention": "window",
    "global_attn_every_n_layers": "global_every",
    "global_rope_theta": "global_theta",
    "local_rope_theta": "local_theta",
    "hidden_activation": "act",
    "classifier_activation": "head_act",
    "classifier_pooling": "pooling",
    "norm_bias": "norm_bias",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "classifier_bias": "head_bias",
    "decoder_bias": "vocab_bias",
    "embedding_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "norm_eps": "eps",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tied",
    "pad_token_id": "pad_id",
}
# Fields that change numbers and that only one value is implemented for.
HF_FIXED = {"mlp_dropout": 0.0, "rope_scaling": None, "quantization_config": None, "is_encoder_decoder": False}
# How numbers are drawn, which of them a loss asks for, how they are computed, and what the first files had from BERT.
_HARMLESS = (
    "deterministic_flash_attn",
    "initializer_cutoff_factor",
    "layer_norm_eps",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
)


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads.

    Transformers 5 says as layer_types and rope_parameters what 4 does as global_attn_every_n_layers and two thetas.
    """
    given = read_fields(hf, _FIELDS, HF_FIXED, harmless=(*_HARMLESS, "layer_types", "rope_parameters"))
    types = hf.get("layer_types")
    if types is not None:
        layers = given.get("layers", Config.layers)
        periods = [given["global_every"]] if "global_every" in given else range(1, layers + 1)
        fitting = [every for every in periods if layer_types(layers, every) == types]
        if not fitting:
            raise UserError(f"config.json: layer_types={types} are not those of global_attn_every_n_layers={periods}")
        given["global_every"] = fitting[0]
    if "local_theta" in given and given["local_theta"] is None:
        given["local_theta"] = given.get("global_theta", Config.global_theta)
    ropes = hf.get("rope_parameters") or {}
    if strange := ropes.keys() - _THETAS.keys():
        raise UserError(f"config.json: rope_parameters of {', '.join(strange)} are not supported")
    for kind, rope in ropes.items():
        ours = _THETAS[kind]
        rope = {**_rope(given.get(ours, getattr(Config, ours))), **rope}
        given.setdefault(ours, rope["rope_theta"])
        if rope != _rope(given[ours]):
            raise UserError(f"config.json: rope_parameters of {kind} are not supported: {rope}")
    return Config(**given)


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    return write_fields(cfg, _FIELDS) | {"layer_types": cfg.layer_types, "rope_parameters": _ropes(cfg)}


def _ropes(cfg: Config) -> dict[str, dict[str, Any]]:
    return {kind: _rope(getattr(cfg, ours)) for kind, ours in _THETAS.items()}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}
