"""What Llama and the decoders after it have in common: blocks, heads, the hub's names. Not a family itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.head import LastHead, TokenHead, VocabHead
from jaxft.layers.mlp import GatedMlp
from jaxft.layers.norm import RmsNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, trunk_flops
from jaxft.models.table import Rows, dense, norm

TOKEN_DROPOUT = 0.1  # of the token head, where config.json names none


class Decoder(Trunk):
    """Words, pre-norm blocks of grouped-query attention and a gated feed-forward, a norm, a head.

    `attention` are options of layers.attention.Attention beside its sizes. A Config has vocab, d_model, d_ff, heads,
    kv_heads, head_dim, act, eps, init_std, tied.
    """

    def __init__(
        self,
        cfg: Any,
        head: str,
        outputs: int,
        how: Execution,
        reach: Sequence[Reach],
        *,
        attention: Mapping[str, Any],
        mlp_bias: bool = False,
    ):
        init = Normal(cfg.init_std)
        embed = TokenEmbed(cfg.vocab, cfg.d_model, init)
        attn = Attention(
            cfg.d_model, cfg.heads, init, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, **{"bias": False, **attention}
        )
        mlp = GatedMlp(cfg.d_model, cfg.d_ff, cfg.act, init, mlp_bias)
        block = PreNormBlock(attn, mlp, lambda: RmsNorm(cfg.d_model, cfg.eps))
        super().__init__(
            embed, block, decoder_head(cfg, head, outputs, embed), how, reach, RmsNorm(cfg.d_model, cfg.eps)
        )


def fill_in(cfg: Any) -> None:
    """Sets the sizes that a Config leaves open, so that equal networks have equal Configs."""
    object.__setattr__(cfg, "kv_heads", cfg.kv_heads or cfg.heads)
    object.__setattr__(cfg, "head_dim", cfg.head_dim or cfg.d_model // cfg.heads)


def decoder_head(cfg: Any, head: str, outputs: int, embed: TokenEmbed, **options: Any) -> Any:
    """`options` are those of the VocabHead."""
    init = Normal(cfg.init_std)
    if head == "causal_lm":
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=embed.word if cfg.tied else None, **options)
    if head == "sequence":
        return LastHead(cfg.d_model, outputs, init=init)
    return TokenHead(cfg.d_model, outputs, drop=TOKEN_DROPOUT if head == "token" else 0.0, init=init)


def decoder_flops(cfg: Any, attended: float, *, mlp: float | None = None) -> float:
    """Model FLOPs of one token, forward and backward; `mlp`: weights that it meets in a feed-forward."""
    wide, narrow = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    return trunk_flops(
        layers=cfg.layers,
        queries=2 * cfg.d_model * wide,
        keys=2 * cfg.d_model * narrow,
        mlp=3 * cfg.d_model * cfg.d_ff if mlp is None else mlp,
        attended=attended * wide / 2,  # a causal query sees half of the others, on average
    )


LAYER = "model.layers.{N}."


def table(*, qkv_bias: bool = False, out_bias: bool = False, mlp_bias: bool = False) -> Rows:
    """The hub table; rows of biases only where some model of the family has them."""
    return {
        "embed/word/table": ("model.embed_tokens.weight", "V D"),
        **norm("blocks/attn_norm", LAYER + "input_layernorm", bias=False),
        **dense("blocks/attn/q", LAYER + "self_attn.q_proj", "HK D -> D HK", bias=qkv_bias),
        **dense("blocks/attn/k", LAYER + "self_attn.k_proj", "GK D -> D GK", bias=qkv_bias),
        **dense("blocks/attn/v", LAYER + "self_attn.v_proj", "GK D -> D GK", bias=qkv_bias),
        **dense("blocks/attn/out", LAYER + "self_attn.o_proj", "D HK -> HK D", bias=out_bias),
        **norm("blocks/mlp_norm", LAYER + "post_attention_layernorm", bias=False),
        **dense("blocks/mlp/gate", LAYER + "mlp.gate_proj", "F D -> D F", bias=mlp_bias),
        **dense("blocks/mlp/up", LAYER + "mlp.up_proj", "F D -> D F", bias=mlp_bias),
        **dense("blocks/mlp/down", LAYER + "mlp.down_proj", "D F -> F D", bias=mlp_bias),
        **norm("norm", "model.norm", bias=False),
    }


def heads(rows: Rows, *, span_prefix: str = "model.") -> dict[str, Rows]:
    """The heads that transformers gives every decoder, and their tensors.

    `span_prefix`: what the trunk's names begin with under the question-answering head.
    """
    moved = {path: (span_prefix + name.removeprefix("model."), layout) for path, (name, layout) in rows.items()}
    return {
        "causal_lm": {"head/unembed/table": ("lm_head.weight", "V D")},
        "sequence": dense("head/classifier", "score", "C D -> D C", bias=False),
        "token": dense("head/classifier", "score", "C D -> D C"),
        "span": {
            **({} if span_prefix == "model." else moved),
            **dense("head/classifier", "qa_outputs", "C D -> D C"),
        },
    }


def architectures(name: str) -> dict[str, str]:
    return {
        "causal_lm": f"{name}ForCausalLM",
        "sequence": f"{name}ForSequenceClassification",
        "token": f"{name}ForTokenClassification",
        "span": f"{name}ForQuestionAnswering",
    }


HF_PREFIX = "model."
HF_IGNORE = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
HF_OTHER = (r"lm_head\.weight", r"score\..*", r"qa_outputs\..*")
HF_LEGACY: dict[str, str] = {}
HF_TIED = {"causal_lm": {"lm_head.weight": "model.embed_tokens.weight"}}

FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "hidden_act": "act",
    "rms_norm_eps": "eps",
    "initializer_range": "init_std",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tied",
    "pad_token_id": "pad_id",
}
FIXED: dict[str, Any] = {  # fields that change numbers and that only one value is implemented for
    "is_decoder": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
SIZES = ("vocab", "positions", "layers", "d_model", "d_ff", "heads")
