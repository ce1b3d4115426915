"""What BART and Marian have in common: post-norm blocks on both sides, the hub's names. Not a family itself."""

from collections.abc import Mapping
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.cross import SideBlock
from jaxft.layers.embed import Embed, Sinusoid, TokenEmbed
from jaxft.layers.encdec import EncDec, Side, SideEmbed, encdec_flops
from jaxft.layers.head import EosHead, TokenHead, VocabHead
from jaxft.layers.mlp import ACTIVATIONS, Mlp
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.models.table import Rows, check_sizes, dense, norm, read_fields
from jaxft.registry import UserError

EPS = 1e-5  # of every norm: transformers has no field for it
FIRST_POSITION = 2  # BART's tables of positions begin with two rows that no token takes


class Bart(EncDec):
    """`learned`: positions are tables, and a norm follows them; else they are sines."""

    def __init__(self, cfg: Any, head: str, outputs: int, how: Execution, *, learned: bool):
        scale = cfg.d_model**0.5 if cfg.scale_embedding else 1.0
        embed = TokenEmbed(cfg.vocab, cfg.d_model, Normal(cfg.init_std), scale=scale)
        super().__init__(
            embed,
            _side(cfg, how, learned, layers=cfg.layers, d_ff=cfg.d_ff, heads=cfg.heads, causal=False),
            _side(
                cfg,
                how,
                learned,
                layers=cfg.decoder_layers,
                d_ff=cfg.decoder_d_ff,
                heads=cfg.decoder_heads,
                causal=True,
            ),
            _head(cfg, head, outputs, embed),
            how,
            start_id=cfg.start_id,
            answers=head == "seq2seq_lm",
            still_id=cfg.pad_id,
        )


def _side(cfg: Any, how: Execution, learned: bool, *, layers: int, d_ff: int, heads: int, causal: bool) -> Side:
    init = Normal(cfg.init_std)

    def attention() -> Attention:
        return Attention(cfg.d_model, heads, init, drop=cfg.attention_dropout)

    block = SideBlock(
        attention(),
        Mlp(cfg.d_model, d_ff, cfg.act, init, drop=cfg.activation_dropout),
        lambda: LayerNorm(cfg.d_model, EPS),
        cross=attention() if causal else None,
        norm_last=True,
        drop=cfg.dropout,
    )
    first = FIRST_POSITION if learned else 0
    table = Embed(cfg.positions + first, cfg.d_model, ("T", "D"), init) if learned else None
    position = Sinusoid(cfg.d_model, cfg.positions) if table is None else table
    norm = LayerNorm(cfg.d_model, EPS) if learned else None
    embed = SideEmbed(drop=cfg.dropout, position=position, most=cfg.positions, first_position=first, norm=norm)
    return Side(embed, block, layers, how, causal=causal)


def _head(cfg: Any, head: str, outputs: int, embed: TokenEmbed) -> Any:
    init = Normal(cfg.init_std)
    if head == "seq2seq_lm":
        return VocabHead(cfg.vocab, cfg.d_model, init=init, tied=embed.word, fixed_bias=True)
    if head == "sequence":
        return EosHead(cfg.d_model, outputs, act="tanh", drop=cfg.classifier_dropout, init=init, eos_id=cfg.eos_id)
    return TokenHead(cfg.d_model, outputs, drop=0.0, init=init)


def check(cfg: Any) -> None:
    """Raises UserError for sizes that no network can have."""
    sizes = ("vocab", "positions", "layers", "decoder_layers", "d_model", "d_ff", "decoder_d_ff", "heads")
    check_sizes(cfg, *sizes, "decoder_heads", acts=ACTIVATIONS)
    if cfg.d_model % cfg.decoder_heads:
        raise UserError(f"model: d_model={cfg.d_model} is not divisible by decoder_heads={cfg.decoder_heads}")


def flops_per_token(cfg: Any, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, that attends over `attended` tokens."""
    return encdec_flops(
        layers=cfg.layers,
        decoder_layers=cfg.decoder_layers,
        attention=4 * cfg.d_model**2,
        mlp=2 * cfg.d_model * cfg.d_ff,
        decoder_mlp=2 * cfg.d_model * cfg.decoder_d_ff,
        attended=attended * cfg.d_model,
        read=read,
    )


def table(*, learned: bool) -> Rows:
    rows = {"embed/word/table": ("model.shared.weight", "V D")}
    for side in ("encoder", "decoder"):
        name, path = f"model.{side}", f"{side}/blocks"
        layer = f"{name}.layers.{{N}}"
        if learned:
            rows[f"{side}/embed/position/table"] = (f"{name}.embed_positions.weight", "T D")
            rows |= norm(f"{side}/embed/norm", f"{name}.layernorm_embedding")
        rows |= _attention_rows(f"{path}/attn", f"{layer}.self_attn")
        if side == "decoder":
            rows |= _attention_rows(f"{path}/cross", f"{layer}.encoder_attn")
        rows |= dense(f"{path}/mlp/up", f"{layer}.fc1", "F D -> D F")
        rows |= dense(f"{path}/mlp/down", f"{layer}.fc2", "D F -> F D")
        rows |= norm(f"{path}/mlp_norm", f"{layer}.final_layer_norm")
    return rows


def _attention_rows(path: str, name: str) -> Rows:
    return {
        **dense(f"{path}/q", f"{name}.q_proj", "HK D -> D HK"),
        **dense(f"{path}/k", f"{name}.k_proj", "GK D -> D GK"),
        **dense(f"{path}/v", f"{name}.v_proj", "GK D -> D GK"),
        **dense(f"{path}/out", f"{name}.out_proj", "D HK -> HK D"),
        **norm(f"{path}_norm", f"{name}_layer_norm"),
    }


SEQ2SEQ = {"head/fixed/bias": ("final_logits_bias", "T V")}
HF_PREFIX = "model."
HF_OTHER = (r"lm_head\.weight", r"final_logits_bias", r"classification_head\..*", r"qa_outputs\..*")
HF_LEGACY: dict[str, str] = {}
COPIES = {f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")}
SEQ2SEQ_COPIES = COPIES | {"lm_head.weight": "model.shared.weight"}

FIELDS = {  # hub field -> ours
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "encoder_layers": "layers",
    "decoder_layers": "decoder_layers",
    "d_model": "d_model",
    "encoder_ffn_dim": "d_ff",
    "decoder_ffn_dim": "decoder_d_ff",
    "encoder_attention_heads": "heads",
    "decoder_attention_heads": "decoder_heads",
    "activation_function": "act",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "init_std": "init_std",
    "scale_embedding": "scale_embedding",
    "decoder_start_token_id": "start_id",
    "eos_token_id": "eos_id",
    "pad_token_id": "pad_id",
}
FIXED: dict[str, Any] = {  # fields that change numbers and that only one value is implemented for
    "is_encoder_decoder": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "pruned_heads": {},
    "quantization_config": None,
}
# Of an older library whose classes transformers no longer has; and another name of encoder_layers, checked below.
HARMLESS = ("add_bias_logits", "extra_pos_embeddings", "classif_dropout", "num_hidden_layers", "save_step")


def read(hf: Mapping[str, Any], fields: Mapping[str, str], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config. Raises UserError for every field that nobody reads, and for layers told in two ways."""
    given = read_fields(hf, fields, fixed, harmless=HARMLESS)
    layers = hf.get("num_hidden_layers")
    if layers is not None and layers != given.get("layers", layers):
        raise UserError(f"config.json: num_hidden_layers={layers} contradicts encoder_layers={given['layers']}")
    return given if layers is None else given | {"layers": layers}
