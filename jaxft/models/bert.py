"""BERT: a bidirectional encoder, layer norm after each residual (Devlin et al. 2018)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.layers.attention import SelfAttention, Where
from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.embed import Embed
from jaxft.layers.mlp import ACTIVATIONS, Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution, pick, run_stack, stack
from jaxft.models import HARMLESS
from jaxft.registry import UserError, nearest

MODEL_TYPE = "bert"
KIND = "encoder"


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are those of transformers' BertConfig, which hub files omit."""

    vocab: int = 30522
    positions: int = 512
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
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab", "positions", "types", "layers", "d_model", "d_ff", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model: {name}={getattr(self, name)} must be 1 or more")
        if self.d_model % self.heads:
            raise UserError(f"model: d_model={self.d_model} is not divisible by heads={self.heads}")
        if self.act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"model: act={self.act!r} is not known; known: {known}{nearest(self.act, ACTIVATIONS)}")


TINY = Config(vocab=99, positions=40, layers=2, d_model=32, d_ff=64, heads=4)


class Embedding(nnx.Module):
    """Word + position + token type, then norm and dropout."""

    def __init__(self, cfg: Config):
        init = Normal(cfg.init_std)
        self.drop = cfg.dropout
        self.word = Embed(cfg.vocab, cfg.d_model, ("V", "D"), init)
        self.position = Embed(cfg.positions, cfg.d_model, ("T", "D"), init)
        self.type = Embed(cfg.types, cfg.d_model, ("T", "D"), init)
        self.norm = LayerNorm(cfg.d_model, cfg.eps)

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        x_BLD = (
            self.word(batch["ids"], dtype) + self.type(batch["type"], dtype) + self.position(batch["position"], dtype)
        )
        return dropout(self.norm(x_BLD), self.drop, key)


class Block(nnx.Module):
    """Attention and feed-forward, each: dropout, add, norm."""

    def __init__(self, cfg: Config):
        init = Normal(cfg.init_std)
        self.drop = cfg.dropout
        self.attn = SelfAttention(cfg.d_model, cfg.heads, init, cfg.attention_dropout)
        self.attn_norm = LayerNorm(cfg.d_model, cfg.eps)
        self.mlp = Mlp(cfg.d_model, cfg.d_ff, cfg.act, init)
        self.mlp_norm = LayerNorm(cfg.d_model, cfg.eps)

    def __call__(
        self, over_BMD: jax.Array, where: Where, key: jax.Array | None, at_BS: jax.Array | None = None
    ) -> jax.Array:
        """[B, M, D] -> [B, M, D], or [B, S, D] at the positions `at_BS` alone."""
        key_weights, key_attn, key_mlp = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BLD, where = (over_BMD, where) if at_BS is None else (pick(over_BMD, at_BS), where.at(at_BS))
        x_BLD = self.attn_norm(x_BLD + dropout(self.attn(x_BLD, over_BMD, where, key_weights), self.drop, key_attn))
        return self.mlp_norm(x_BLD + dropout(self.mlp(x_BLD), self.drop, key_mlp))


class SequenceHead(nnx.Module):
    """One logit vector per segment: tanh pooler over its first token, dropout, classifier."""

    def __init__(self, cfg: Config, outputs: int):
        init = Normal(cfg.init_std)
        self.drop = cfg.dropout if cfg.classifier_dropout is None else cfg.classifier_dropout
        self.pooler = Dense(cfg.d_model, cfg.d_model, ("D", "P"), init)
        self.classifier = Dense(cfg.d_model, outputs, ("P", "C"), init)

    @staticmethod
    def reads(batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, S], the positions whose vectors the head is given."""
        return batch["first"]

    def __call__(self, first_BSD: jax.Array, key: jax.Array | None) -> jax.Array:
        return self.classifier(dropout(jnp.tanh(self.pooler(first_BSD)), self.drop, key)).astype(jnp.float32)


HEADS = {"sequence": SequenceHead}


class Model(nnx.Module):
    """The encoder with a head on top. Parameters are declared, not allocated (build.py does that)."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        self.how = how
        self.embed = Embedding(cfg)
        self.blocks = stack(Block(cfg), cfg.layers)
        self.head = HEADS[head](cfg, outputs)

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """A batch (data/pipeline.py) to logits_BSC in float32; `key` None means evaluation."""
        key_embed, key_blocks, key_head = (None, None, None) if key is None else jax.random.split(key, 3)
        where = Where.within(batch["segment"])
        x_BLD = self.embed(batch, key_embed, self.how.dtype)
        read_BSD = run_stack(
            self.blocks,
            lambda block, x_BLD, key, at_BS: block(x_BLD, where, key, at_BS),
            x_BLD,
            key_blocks,
            self.how,
            self.head.reads(batch),
        )
        return self.head(read_BSD, key_head)


FLOPS_PER_TOKEN = "6 x matmul weights + 12 x layers x attended tokens x d_model; of the last layer keys and values only"


def flops_per_token(cfg: Config, attended: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens: FLOPS_PER_TOKEN.

    Left out is what is computed once an example: heads, and the last layer but for its keys and values.
    """
    below = cfg.layers - 1
    weights = below * (4 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_ff) + 2 * cfg.d_model**2
    return 6 * weights + 12 * below * attended * cfg.d_model


# ---- Hugging Face: one table, both directions ----

_LAYER = "bert.encoder.layer.{N}."


def _dense(path: str, name: str, layout: str) -> dict[str, tuple[str, str]]:
    """Kernel and bias of one linear layer; `layout` is the kernel's."""
    return {f"{path}/kernel": (f"{name}.weight", layout), f"{path}/bias": (f"{name}.bias", layout.split()[0])}


def _norm(path: str, name: str) -> dict[str, tuple[str, str]]:
    return {f"{path}/scale": (f"{name}.weight", "D"), f"{path}/bias": (f"{name}.bias", "D")}


HF = {
    "embed/word/table": ("bert.embeddings.word_embeddings.weight", "V D"),
    "embed/position/table": ("bert.embeddings.position_embeddings.weight", "T D"),
    "embed/type/table": ("bert.embeddings.token_type_embeddings.weight", "T D"),
    **_norm("embed/norm", "bert.embeddings.LayerNorm"),
    **_dense("blocks/attn/q", _LAYER + "attention.self.query", "HK D -> D HK"),
    **_dense("blocks/attn/k", _LAYER + "attention.self.key", "HK D -> D HK"),
    **_dense("blocks/attn/v", _LAYER + "attention.self.value", "HK D -> D HK"),
    **_dense("blocks/attn/out", _LAYER + "attention.output.dense", "D HK -> HK D"),
    **_norm("blocks/attn_norm", _LAYER + "attention.output.LayerNorm"),
    **_dense("blocks/mlp/up", _LAYER + "intermediate.dense", "F D -> D F"),
    **_dense("blocks/mlp/down", _LAYER + "output.dense", "D F -> F D"),
    **_norm("blocks/mlp_norm", _LAYER + "output.LayerNorm"),
}
HF_HEADS = {
    "sequence": {
        **_dense("head/pooler", "bert.pooler.dense", "P D -> D P"),
        **_dense("head/classifier", "classifier", "C P -> P C"),
    }
}
HF_PREFIX = "bert."
HF_IGNORE = (r"(bert\.)?embeddings\.position_ids",)
HF_OTHER = (r"cls\..*", r"qa_outputs\..*", r"classifier\..*", r"(bert\.)?pooler\..*")
HF_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
HF_ARCHITECTURES = {"sequence": "BertForSequenceClassification"}

_FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "type_vocab_size": "types",
    "num_hidden_layers": "layers",
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


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """A hub config.json as a Config.

    Raises UserError for every field that is neither read here nor in models.HARMLESS.
    """
    known = set(_FIELDS) | set(_FIXED) | HARMLESS
    unknown = {name: value for name, value in hf.items() if name not in known}
    wrong = {name: hf[name] for name, only in _FIXED.items() if name in hf and hf[name] != only}
    if unknown or wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in {**unknown, **wrong}.items())
        raise UserError(f"config.json of a {MODEL_TYPE} model has fields that are not supported: {listed}")
    given = {ours: hf[name] for name, ours in _FIELDS.items() if name in hf}
    if given.get("pad_id", 0) is None:
        del given["pad_id"]
    return Config(**given)


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The config.json fields that transformers builds the same network from."""
    values = dataclasses.asdict(cfg)
    return {name: values[ours] for name, ours in _FIELDS.items()}
