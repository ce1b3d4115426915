"""What the decoders of experts have in common: blocks, losses of the routers, the hub's names. Not a family itself."""

from collections.abc import Mapping
from typing import Any

from jaxft.layers.attention import Attention
from jaxft.layers.embed import TokenEmbed
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.moe import Aside, Moe, MoeBlock, router_losses
from jaxft.layers.norm import RmsNorm
from jaxft.layers.parameter import Normal
from jaxft.layers.stack import Execution
from jaxft.layers.trunk import Losses, Trunk
from jaxft.models import llama_like
from jaxft.models.table import Rows, check_sizes
from jaxft.registry import UserError


class MoeDecoder(Trunk):
    """Llama's decoder with experts as feed-forward; `attention` are options of layers.attention.Attention.

    A Config has, beside what llama_like.Decoder asks for: experts, chosen, d_ff (of one expert), balance, balance_coef,
    z_coef. `renormalise`: see layers.moe.Moe.
    """

    # What `flops_per_token` counts, for people.
    FLOPS_PER_TOKEN = Trunk.FLOPS_PER_TOKEN + "; of the experts those that a token meets"

    def __init__(
        self, cfg: Any, head: str, outputs: int, how: Execution, *, attention: Mapping[str, Any], renormalise: bool
    ):
        init = Normal(cfg.init_std)
        self.balance_coef, self.z_coef = cfg.balance_coef if cfg.balance else 0.0, cfg.z_coef
        embed = TokenEmbed(cfg.vocab, cfg.d_model, init)
        attn = Attention(
            cfg.d_model, cfg.heads, init, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, **{"bias": False, **attention}
        )
        moe = Moe(
            cfg.d_model,
            cfg.d_ff,
            experts=cfg.experts,
            chosen=cfg.chosen,
            renormalise=renormalise,
            act=cfg.act,
            init=init,
        )
        routed = bool(self.balance_coef or self.z_coef)
        block = MoeBlock(attn, moe, lambda: RmsNorm(cfg.d_model, cfg.eps), routed=routed)
        top = llama_like.decoder_head(cfg, head, outputs, embed)
        super().__init__(embed, block, top, how, llama_like.reach(cfg), RmsNorm(cfg.d_model, cfg.eps))

    def losses(self, aside: Aside | None) -> Losses:
        return {} if aside is None else router_losses(aside, balance=self.balance_coef, z=self.z_coef)


def check(cfg: Any) -> None:
    """As llama_like.check. Raises UserError."""
    check_sizes(cfg, "experts", "chosen", acts=ACTIVATIONS)
    if cfg.chosen > cfg.experts:
        raise UserError(f"model: chosen={cfg.chosen} must be at most experts={cfg.experts}")
    llama_like.check(cfg)


def flops_per_token(cfg: Any, attended: float, read: float) -> float:
    """Model FLOPs of one token, forward and backward."""
    return llama_like.decoder_flops(cfg, attended, read, mlp=cfg.d_model * (cfg.experts + 3 * cfg.chosen * cfg.d_ff))


def table(layer: str, names: Mapping[str, str], **options: bool) -> Rows:
    """The hub table. `layer` is where a layer keeps its router and experts; `names` are those of an expert's parts."""
    dense = {path: row for path, row in llama_like.table(**options).items() if not path.startswith("blocks/mlp/")}
    where = f"{llama_like.LAYER}{layer}."
    layouts = {"gate": "F D -> D F", "up": "F D -> D F", "down": "D F -> F D"}
    return {
        **dense,
        "blocks/mlp/router/kernel": (where + "gate.weight", "E D -> D E"),
        **{
            f"blocks/mlp/{part}/kernel": (f"{where}experts.{{E}}.{names[part]}.weight", layout)
            for part, layout in layouts.items()
        },
    }


FIELDS = {  # hub field -> ours, beside those of llama_like
    "num_experts_per_tok": "chosen",
    "output_router_logits": "balance",
    "router_aux_loss_coef": "balance_coef",
    "router_z_loss_coef": "z_coef",  # not read by transformers, which has no such loss for these families
}
