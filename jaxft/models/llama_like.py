"""What Llama and the decoders after it have in common: blocks, heads, the hub's names. Not a family itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.head import LastHead, TokenHead, VocabHead
from jaxft.layers.mlp import ACTIVATIONS, GatedMlp
from jaxft.layers.norm import RmsNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.rope import Rope
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Reach, Trunk, trunk_flops
from jaxft.models.table import (
    ROPE_FIELDS,
    Rows,
    check_sizes,
    dense,
    norm,
    read_fields,
    read_rope,
    write_fields,
    write_rope,
)
from jaxft.registry import UserError

SLIDING, FULL = "sliding_attention", "full_attention"  # what a layer of `layer_types` may be
TOKEN_DROPOUT = 0.1  # of the token head, where config.json names none


class Decoder(Trunk):
    """Words, pre-norm blocks of grouped-query attention and a gated feed-forward, a norm, a head.

    `attention` are options of layers.attention.Attention beside its sizes; `drop` is the dropout of what a block adds.
    A Config has vocab, d_model, d_ff, heads, kv_heads, head_dim, act, eps, init_std, tied.
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
        drop: float = 0.0,
    ):
        init = Normal(cfg.init_std)
        embed = TokenEmbed(cfg.vocab, cfg.d_model, init)
        attn = Attention(
            cfg.d_model, cfg.heads, init, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, **{"bias": False, **attention}
        )
        mlp = GatedMlp(cfg.d_model, cfg.d_ff, cfg.act, init, mlp_bias)
        block = PreNormBlock(attn, mlp, lambda: RmsNorm(cfg.d_model, cfg.eps), drop=drop)
        super().__init__(
            embed, block, decoder_head(cfg, head, outputs, embed), how, reach, RmsNorm(cfg.d_model, cfg.eps)
        )


def check(cfg: Any, *, partial: bool = False) -> None:
    """Refuses a Config that cannot be, and sets what it leaves open, so that equal networks have equal Configs.

    `partial`: only some dimensions of a head may be turned. Raises UserError.
    """
    check_sizes(cfg, *SIZES, acts=ACTIVATIONS)
    fill_in(cfg)
    turned = cfg.rope.get("partial_rotary_factor", 1.0)
    if turned != 1 and not partial:
        raise UserError(f"model: rope partial_rotary_factor={turned} is not supported by this family")
    turning(cfg)
    object.__setattr__(cfg, "layer_types", tuple(cfg.layer_types))
    if len(each := {*windows(cfg)}) == 1:  # one way to say that all layers are alike
        object.__setattr__(cfg, "window", each.pop())
        object.__setattr__(cfg, "layer_types", ())


def fill_in(cfg: Any) -> None:
    """Sets the sizes that a Config leaves open."""
    object.__setattr__(cfg, "kv_heads", cfg.kv_heads or cfg.heads)
    object.__setattr__(cfg, "head_dim", cfg.head_dim or cfg.d_model // cfg.heads)


def turning(cfg: Any) -> Rope:
    return Rope.of(cfg.rope, head_dim=cfg.head_dim, positions=cfg.positions)


def windows(cfg: Any) -> list[int]:
    """Of each layer: how many tokens it attends to, itself among them; 0: all. Raises UserError for bad layer_types.

    `layer_types` () : every layer has cfg.window, else those that it calls sliding.
    """
    types = cfg.layer_types or (SLIDING if cfg.window else FULL,) * cfg.layers
    if len(types) != cfg.layers or not {*types} <= {SLIDING, FULL} or (SLIDING in types and cfg.window < 1):
        raise UserError(
            f"model: layer_types={[*types]} with window={cfg.window} must be {SLIDING} or {FULL} for each of "
            f"layers={cfg.layers}, and sliding needs a window of 1 or more"
        )
    return [cfg.window if kind == SLIDING else 0 for kind in types]


def reach(cfg: Any) -> list[Reach]:
    rope = turning(cfg)
    return [Reach(causal=True, window=window, rope=rope) for window in windows(cfg)]


def decoder_head(cfg: Any, head: str, outputs: int, embed: TokenEmbed, **options: Any) -> Any:
    """`options` are those of the VocabHead."""
    init = Normal(cfg.init_std)
    if head == "causal_lm":
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=embed.word if cfg.tied else None, **options)
    if head == "sequence":
        return LastHead(cfg.d_model, outputs, init=init)
    return TokenHead(cfg.d_model, outputs, drop=TOKEN_DROPOUT if head == "token" else 0.0, init=init)


def decoder_flops(
    cfg: Any, attended: float, read: float, *, mlp: float | None = None, of_layers: Sequence[int] | None = None
) -> float:
    """Model FLOPs of one token, forward and backward, in a text of `attended` tokens.

    `mlp`: weights that it meets in a feed-forward; `of_layers`: their windows, None: those of the Config.
    """
    wide, narrow = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    seen = attended / 2  # a causal query sees half of the others, on average
    seen = sum(min(seen, window) if window else seen for window in of_layers or windows(cfg)) / cfg.layers
    return trunk_flops(
        layers=cfg.layers,
        queries=2 * cfg.d_model * wide,
        keys=2 * cfg.d_model * narrow,
        mlp=3 * cfg.d_model * cfg.d_ff if mlp is None else mlp,
        attended=seen * wide,
        read=read,
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


def heads(rows: Rows, *, span_prefix: str | None = "model.") -> dict[str, Rows]:
    """The heads that transformers gives the decoders, and their tensors.

    `span_prefix`: what the trunk's names begin with under the question-answering head; None: there is no such head.
    """
    found = {
        "causal_lm": {"head/unembed/table": ("lm_head.weight", "V D")},
        "sequence": dense("head/classifier", "score", "C D -> D C", bias=False),
        "token": dense("head/classifier", "score", "C D -> D C"),
    }
    if span_prefix is None:
        return found
    moved = {path: (span_prefix + name.removeprefix("model."), layout) for path, (name, layout) in rows.items()}
    span = dense("head/classifier", "qa_outputs", "C D -> D C")
    return found | {"span": span if span_prefix == "model." else moved | span}


_CLASSES = {
    "causal_lm": "ForCausalLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def architectures(name: str, heads: Iterable[str] = _CLASSES) -> dict[str, str]:
    return {head: name + _CLASSES[head] for head in heads}


HF_PREFIX = "model."
HF_IGNORE = (r"((model|transformer)\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
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
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
SIZES = ("vocab", "positions", "layers", "d_model", "d_ff", "heads")


def config_fields(
    hf: Mapping[str, Any],
    fields: Mapping[str, str] = FIELDS,
    fixed: Mapping[str, Any] = FIXED,
    *,
    harmless: Iterable[str] = (),
) -> dict[str, Any]:
    """A hub config.json as the fields of a Config. Raises UserError for every field that nobody reads."""
    given = read_fields(hf, fields, fixed, harmless=(*ROPE_FIELDS, *harmless)) | {"rope": read_rope(hf)}
    return given | ({"window": given["window"] or 0} if "window" in given else {})


def hub_fields(cfg: Any, fields: Mapping[str, str] = FIELDS) -> dict[str, Any]:
    """The fields of config.json that transformers builds the same network from."""
    found = {name: value for name, value in write_fields(cfg, fields).items() if value is not None}
    return found | ({"sliding_window": cfg.window or None} if "sliding_window" in fields else {}) | write_rope(cfg.rope)
