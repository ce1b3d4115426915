"""What Gemma 2 and 3 have in common: four norms a block, layers of two kinds, the hub's names. Not a family itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.block import PreNormBlock
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.mlp import ACTIVATIONS, GatedMlp
from jaxft.layers.norm import RmsNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.rope import Rope
from jaxft.layers.stack import Execution, period
from jaxft.layers.trunk import Reach, Trunk
from jaxft.models import llama_like
from jaxft.models.table import Rows, check_sizes, norm, read_fields, write_fields
from jaxft.registry import UserError, nearest

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Sizes:
    """The fields of a Config that both families have, with the defaults of transformers' Gemma2Config."""

    vocab: int = 256000
    positions: int = 8192
    layers: int = 26
    d_model: int = 2304
    d_ff: int = 9216
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 256
    act: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    init_std: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    query_scalar: int = 256  # queries are divided by its root
    window: int = 4096  # tokens that a sliding layer sees, itself among them
    pattern: tuple[str, ...] = (SLIDING, FULL)  # the kind of each layer, repeated
    softcap: float = 30.0  # of the logits over the vocabulary; 0: none
    tied: bool = True
    pad_id: int = 0

    types = 0  # none: those of a pair's texts are ignored

    def __post_init__(self) -> None:
        check_sizes(self, *llama_like.SIZES, "kv_heads", "head_dim", "query_scalar", "window", acts=ACTIVATIONS)
        object.__setattr__(self, "pattern", tuple(self.pattern))  # JSON has lists
        for kind in self.pattern or ("",):
            if kind not in (SLIDING, FULL):
                raise UserError(
                    f"model: pattern={self.pattern!r} must be made of {SLIDING}, {FULL}{nearest(kind, (SLIDING, FULL))}"
                )

    def kinds(self) -> list[str]:
        """That of each layer."""
        return [self.pattern[i % len(self.pattern)] for i in range(self.layers)]

    def turning(self, rope: Mapping[str, Any]) -> Rope:
        if "partial_rotary_factor" in rope:  # of a rope of the default type transformers 4 would read it, 5 would not
            raise UserError(f"model: rope partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
        return Rope.of(rope, head_dim=self.head_dim, positions=self.positions)


class Decoder(Trunk):
    """Scaled words, blocks with norms before and after attention and feed-forward, a norm, a head.

    `reach` says how each kind of layer attends; `attention_softcap` bounds its scores; `head_norms`: queries and keys
    are normalised, head by head. The stored weight of every norm is its scale - 1.
    """

    def __init__(
        self,
        cfg: Any,
        head: str,
        outputs: int,
        how: Execution,
        reach: Mapping[str, Reach],
        *,
        attention_softcap: float = 0.0,
        head_norms: bool = False,
    ):
        init = Normal(cfg.init_std)
        over_model = partial(RmsNorm, cfg.d_model, cfg.eps, offset=True)
        over_head = partial(RmsNorm, cfg.head_dim, cfg.eps, offset=True, axes=("K",))
        embed = TokenEmbed(cfg.vocab, cfg.d_model, init, scale=cfg.d_model**0.5)
        attn = Attention(
            cfg.d_model,
            cfg.heads,
            init,
            kv_heads=cfg.kv_heads,
            head_dim=cfg.head_dim,
            bias=cfg.attention_bias,
            scale=cfg.query_scalar**-0.5,
            softcap=attention_softcap,
            drop=cfg.attention_dropout,
            q_norm=over_head() if head_norms else None,
            k_norm=over_head() if head_norms else None,
        )
        block = PreNormBlock(attn, GatedMlp(cfg.d_model, cfg.d_ff, cfg.act, init), over_model, after=True)
        top = llama_like.decoder_head(cfg, head, outputs, embed, softcap=cfg.softcap)
        super().__init__(embed, block, top, how, [reach[kind] for kind in cfg.kinds()], over_model())


def flops_per_token(cfg: Any, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward, in a text of `attended` tokens."""
    windows = [cfg.window if kind == SLIDING else 0 for kind in cfg.kinds()]
    return llama_like.decoder_flops(cfg, attended, read, of_layers=windows)


# ---- Hugging Face: one table, both directions ----


def table(*, head_norms: bool) -> Rows:
    layer = llama_like.LAYER
    rows = {
        **llama_like.table(qkv_bias=True, out_bias=True),
        **norm("blocks/attn_after", layer + "post_attention_layernorm", bias=False),
        **norm("blocks/mlp_norm", layer + "pre_feedforward_layernorm", bias=False),
        **norm("blocks/mlp_after", layer + "post_feedforward_layernorm", bias=False),
    }
    for one in ("q_norm", "k_norm") if head_norms else ():
        rows |= norm(f"blocks/attn/{one}", f"{layer}self_attn.{one}", bias=False, letter="K")
    return rows


FIELDS = {  # hub field -> ours
    **{name: ours for name, ours in llama_like.FIELDS.items() if name != "hidden_act"},
    "hidden_activation": "act",
    "attention_bias": "attention_bias",
    "query_pre_attn_scalar": "query_scalar",
    "sliding_window": "window",
    "final_logit_softcapping": "softcap",
}
FIXED = {**llama_like.FIXED, "partial_rotary_factor": None}
# Read by no version of transformers; `hidden_act` is that of Gemma 1.
HARMLESS = ("hidden_act", "cache_implementation", "sliding_window_size", "layer_types")


def read(
    hf: Mapping[str, Any], fields: Mapping[str, str], fixed: Mapping[str, Any], *, harmless: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of a hub config.json under our names, as table.read_fields; ropes are left to the family."""
    given = read_fields(hf, fields, fixed, harmless=(*HARMLESS, *harmless))
    for ours in ("attention_softcap", "softcap"):
        if ours in given:
            given[ours] = given[ours] or 0.0  # null: none
    if hf.get("layer_types") is not None:
        kinds, layers = hf["layer_types"], {"layers": Sizes.layers, **given}["layers"]
        if len(kinds) != layers:
            raise UserError(f"config.json: layer_types has {len(kinds)} items for {layers} layers")
        given["pattern"] = tuple(kinds[: period(kinds)])
    return given


def write(cfg: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """The same the other way."""
    values = write_fields(cfg, fields)
    values |= {name: None for name in values if name.endswith("softcapping") and not values[name]}
    return values | {"layer_types": cfg.kinds()}
