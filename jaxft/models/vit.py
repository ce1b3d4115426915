"""ViT: an encoder of images cut into patches, a patch a token (Dosovitskiy et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import PatchEmbed
from jaxft.layers.head import FirstHead
from jaxft.layers.mlp import ACTIVATIONS, Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, encoder_flops
from jaxft.models.table import check_sizes, dense, norm, read_fields
from jaxft.registry import UserError

MODEL_TYPE = "vit"
KIND = "vision"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' ViTConfig, which hub files omit."""

    image_size: int = 224  # pixels in a side of the square
    patch_size: int = 16
    channels: int = 3
    layers: int = 12
    d_model: int = 768
    d_ff: int = 3072
    heads: int = 12
    act: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    qkv_bias: bool = True
    eps: float = 1e-12
    init_std: float = 0.02

    vocab, types, pad_id = 0, 0, 0  # none of them

    def __post_init__(self) -> None:
        sizes = ("image_size", "patch_size", "channels", "layers", "d_model", "d_ff", "heads")
        check_sizes(self, *sizes, acts=ACTIVATIONS)
        if self.image_size % self.patch_size:
            raise UserError(f"model: image_size={self.image_size} is not divisible by patch_size={self.patch_size}")

    @property
    def positions(self) -> int:
        """Tokens of an image: its patches, and one before them that stands for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


TINY = Config(image_size=16, patch_size=4, layers=2, d_model=32, d_ff=64, heads=4)
VARIANTS = {
    "no-qkv-bias": dataclasses.replace(TINY, qkv_bias=False),
    "grey": dataclasses.replace(TINY, channels=1, act="relu"),
}


class Model(Trunk):
    """Patches + position, pre-norm blocks, norm, a head on the first token."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        init = Normal(cfg.init_std)
        embed = PatchEmbed(
            patch=cfg.patch_size,
            channels=cfg.channels,
            positions=cfg.positions,
            d_model=cfg.d_model,
            dropout=cfg.dropout,
            init=init,
        )
        attn = Attention(cfg.d_model, cfg.heads, init, bias=cfg.qkv_bias, out_bias=True, drop=cfg.attention_dropout)
        block = PreNormBlock(
            attn,
            Mlp(cfg.d_model, cfg.d_ff, cfg.act, init),
            lambda: LayerNorm(cfg.d_model, cfg.eps),
            drop=cfg.dropout,
        )
        super().__init__(
            embed,
            block,
            FirstHead(cfg.d_model, outputs, drop=0.0, init=init),
            how,
            [Reach()] * cfg.layers,
            LayerNorm(cfg.d_model, cfg.eps),
        )


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward; the pixels themselves take no gradient."""
    patch = 4 * cfg.d_model * cfg.channels * cfg.patch_size**2
    return patch + encoder_flops(layers=cfg.layers, d_model=cfg.d_model, d_ff=cfg.d_ff, attended=attended, read=read)


# ---- Hugging Face: one table, both directions ----

_LAYER = "vit.encoder.layer.{N}."
HF = {
    "embed/first": ("vit.embeddings.cls_token", "B L D"),
    "embed/position": ("vit.embeddings.position_embeddings", "B T D"),
    **dense("embed/patch", "vit.embeddings.patch_embeddings.projection", "D I Y W -> Y W I D"),
    **norm("blocks/attn_norm", _LAYER + "layernorm_before"),
    **dense("blocks/attn/q", _LAYER + "attention.attention.query", "HK D -> D HK"),
    **dense("blocks/attn/k", _LAYER + "attention.attention.key", "GK D -> D GK"),
    **dense("blocks/attn/v", _LAYER + "attention.attention.value", "GK D -> D GK"),
    **dense("blocks/attn/out", _LAYER + "attention.output.dense", "D HK -> HK D"),
    **norm("blocks/mlp_norm", _LAYER + "layernorm_after"),
    **dense("blocks/mlp/up", _LAYER + "intermediate.dense", "F D -> D F"),
    **dense("blocks/mlp/down", _LAYER + "output.dense", "D F -> F D"),
    **norm("norm", "vit.layernorm"),
}
HF_HEADS = {"sequence": dense("head/classifier", "classifier", "C D -> D C")}
HF_PREFIX = "vit."
HF_IGNORE: tuple[str, ...] = ()
# The pooler of a bare trunk, which no classifier has, and what stands on it for masked images.
HF_OTHER = (r"(vit\.)?pooler\.dense\..*", r"(vit\.)?embeddings\.mask_token", r"decoder\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED: dict[str, dict[str, str]] = {}
HF_ARCHITECTURES = {"sequence": "ViTForImageClassification"}

_FIELDS = {  # hub field -> ours
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "hidden_act": "act",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "eps",
    "initializer_range": "init_std",
}
HF_FIXED = {"pruned_heads": {}, "quantization_config": None, "is_encoder_decoder": False}
# Of the pooler and of the decoder for masked images, which are not built, and of a vocabulary.
_HARMLESS = ("pooler_output_size", "pooler_act", "encoder_stride", "tie_word_embeddings")


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config. Raises UserError for every field that nobody reads."""
    values = read_fields(hf, _FIELDS, HF_FIXED, harmless=_HARMLESS)
    for name in ("image_size", "patch_size"):
        if name in values:
            values[name] = _side(name, values[name])
    return Config(**values)


def _side(name: str, value: Any) -> int:
    """The side of a square that may be given by both of its sides. Raises UserError for any other rectangle."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"config.json of a vit model has a {name} that is not supported: {value}, which is not square")
    return sides.pop()


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()}
