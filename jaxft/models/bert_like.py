"""What BERT and the encoders after it have in common: blocks, the hub's names. Not a family itself."""

from typing import Any

from jaxft.layers.block import PostNormBlock
from jaxft.layers.embed import TextEmbed
from jaxft.layers.head import TokenHead, Transform, VectorHead, VocabHead
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, encoder_flops
from jaxft.models.table import Rows, dense, norm


class Encoder(Trunk):
    """Post-norm blocks between an embedding and a head.

    A Config has layers, d_model, d_ff, heads, act, eps, dropout, attention_dropout, init_std.
    """

    def __init__(self, cfg: Any, embed: Any, head: Any, how: Execution):
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
        super().__init__(embed, block, head, how, [Reach()] * cfg.layers)


def text_embed(cfg: Any, d_model: int, *, first_position: int = 0) -> TextEmbed:
    return TextEmbed(
        vocab=cfg.vocab,
        positions=cfg.positions,
        types=cfg.types,
        d_model=d_model,
        eps=cfg.eps,
        dropout=cfg.dropout,
        init=Normal(cfg.init_std),
        first_position=first_position,
    )


def masked_lm_head(cfg: Any, embed: TextEmbed, d_embed: int, act: str) -> VocabHead:
    """Over the vocabulary, from vectors as wide as an embedding is."""
    init = Normal(cfg.init_std)
    transform = Transform(cfg.d_model, d_embed, act, LayerNorm(d_embed, cfg.eps), init)
    tied = embed.word if cfg.tied else None
    return VocabHead(cfg.vocab, d_embed, init=init, tied=tied, bias=True, transform=transform)


def token_head(cfg: Any, head: str, outputs: int, *, drop: float, span_drop: float = 0.0) -> TokenHead | VectorHead:
    """Of all tokens: their vectors, tags, or the start and end of an answer."""
    if head == "vectors":
        return VectorHead()
    return TokenHead(cfg.d_model, outputs, drop=drop if head == "token" else span_drop, init=Normal(cfg.init_std))


def classifier_dropout(cfg: Any) -> float:
    return cfg.dropout if cfg.classifier_dropout is None else cfg.classifier_dropout


def flops_per_token(cfg: Any, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens."""
    return encoder_flops(layers=cfg.layers, d_model=cfg.d_model, d_ff=cfg.d_ff, attended=attended, read=read)


# ---- Hugging Face: what their tables share ----


def table(prefix: str, embed: str = "embed") -> Rows:
    """The trunk under the names of BERT; `embed` is the path of its embedding."""
    layer = prefix + "encoder.layer.{N}."
    return {
        f"{embed}/word/table": (prefix + "embeddings.word_embeddings.weight", "V D"),
        f"{embed}/position/table": (prefix + "embeddings.position_embeddings.weight", "T D"),
        f"{embed}/type/table": (prefix + "embeddings.token_type_embeddings.weight", "T D"),
        **norm(f"{embed}/norm", prefix + "embeddings.LayerNorm"),
        **dense("blocks/attn/q", layer + "attention.self.query", "HK D -> D HK"),
        **dense("blocks/attn/k", layer + "attention.self.key", "GK D -> D GK"),
        **dense("blocks/attn/v", layer + "attention.self.value", "GK D -> D GK"),
        **dense("blocks/attn/out", layer + "attention.output.dense", "D HK -> HK D"),
        **norm("blocks/attn_norm", layer + "attention.output.LayerNorm"),
        **dense("blocks/mlp/up", layer + "intermediate.dense", "F D -> D F"),
        **dense("blocks/mlp/down", layer + "output.dense", "D F -> F D"),
        **norm("blocks/mlp_norm", layer + "output.LayerNorm"),
    }


def masked_lm(transform: str, transform_norm: str, decoder: str, *, bias: str | None = None) -> Rows:
    """The head over the vocabulary. `bias`: what the decoder's is called where its table is the embedding's.

    Where that is not so, transformers 5 computes with the decoder's own and transformers 4 with `bias`: both are there.
    """
    own = f"{decoder}.bias"
    return {
        **dense("head/transform/dense", transform, "P D -> D P"),
        **norm("head/transform/norm", transform_norm),
        "head/bias": (bias or own, "V"),
        "head/unembed/table": (f"{decoder}.weight", "V D"),
        "head/unembed/bias": (f"{own} = {bias}" if bias else own, "V"),
    }


TOKEN = dense("head/classifier", "classifier", "C D -> D C")
SPAN = dense("head/classifier", "qa_outputs", "C D -> D C")


def architectures(name: str) -> dict[str, str]:
    return {
        "masked_lm": f"{name}ForMaskedLM",
        "sequence": f"{name}ForSequenceClassification",
        "token": f"{name}ForTokenClassification",
        "span": f"{name}ForQuestionAnswering",
        "multiple_choice": f"{name}ForMultipleChoice",
        "vectors": f"{name}Model",
    }


LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
FIELDS = {  # hub field -> ours
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
    "tie_word_embeddings": "tied",
    "pad_token_id": "pad_id",
}
FIXED = {  # fields that change numbers and that only one value is implemented for
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
SIZES = ("vocab", "positions", "types", "layers", "d_model", "d_ff", "heads")
