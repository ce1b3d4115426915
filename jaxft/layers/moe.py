"""A feed-forward of many experts, of which each token meets a few (Shazeer et al. 2017). No token is ever dropped."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft import sharding
from jaxft.layers.attention import Attention, Sight
from jaxft.layers.block import PreNormBlock
from jaxft.layers.frozen import Frozen
from jaxft.layers.grouped import grouped, grouped_frozen
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Init, parameter
from jaxft.layers.stack import pick
from jaxft.layers.trunk import Losses

Aside = dict[str, jax.Array]  # sums over tokens: see `Moe.aside`


class Kernel(nnx.Module):
    """One kernel, without a bias."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], init: Init):
        self.kernel = parameter(shape, axes, init)


class Moe(nnx.Module):
    """Sum over a token's `chosen` experts of weight * down(act(gate(x)) * up(x)).

    Weights are the router's probabilities over all experts, in float32; `renormalise`: those of the chosen ones are
    made to add up to 1. What is no token (segment 0) meets no expert and gets 0.
    """

    def __init__(self, d_model: int, d_ff: int, *, experts: int, chosen: int, renormalise: bool, act: str, init: Init):
        self.experts, self.chosen, self.renormalise, self.act = experts, chosen, renormalise, act
        self.router = Kernel((d_model, experts), ("D", "E"), init)
        self.gate = Kernel((experts, d_model, d_ff), ("E", "D", "F"), init)
        self.up = Kernel((experts, d_model, d_ff), ("E", "D", "F"), init)
        self.down = Kernel((experts, d_ff, d_model), ("E", "F", "D"), init)

    def __call__(self, x_BLD: jax.Array, real_BL: jax.Array) -> tuple[jax.Array, Aside]:
        """[B, L, D] and which of them are tokens -> [B, L, D], and sums that losses of the router are made of."""
        # In float32 throughout: bfloat16 would round close experts to the same logit.
        kernel_DE = self.router.kernel[...].astype(jnp.float32)
        logits_BLE = jnp.matmul(x_BLD.astype(jnp.float32), kernel_DE, precision="highest")
        logits_BLE = sharding.constrain(logits_BLE, "BL_")
        share_BLE = jax.nn.softmax(logits_BLE, axis=-1)
        _, expert_BLX = jax.lax.top_k(jax.lax.stop_gradient(share_BLE), self.chosen)
        # A comparison instead of a gather, whose gradient would be a scatter.
        is_chosen_BLXE = expert_BLX[..., None] == jnp.arange(self.experts).reshape(1, 1, 1, -1)
        weight_BLX = jnp.where(is_chosen_BLXE, share_BLE[:, :, None], 0).sum(-1)
        if self.renormalise:
            weight_BLX /= weight_BLX.sum(-1, keepdims=True)
        stays = isinstance(self.gate.kernel[...], Frozen)
        y_BLD = sharding.by_device(
            functools.partial(self._mixed, grouped_frozen if stays else grouped),
            (x_BLD, "BL_"),
            (weight_BLX, "BL_"),
            (jnp.where(real_BL[..., None], expert_BLX, self.experts), "BL_"),  # beyond all experts: nobody's
            (jnp.arange(self.experts), "E"),
            (self.gate.kernel[...].astype(x_BLD.dtype), "E_F"),
            (self.up.kernel[...].astype(x_BLD.dtype), "E_F"),
            (self.down.kernel[...].astype(x_BLD.dtype), "EF_"),
            over="EF",
        )
        real_BL = real_BL.astype(jnp.float32)
        aside = {
            "tokens": real_BL.sum(),
            "chosen_E": (is_chosen_BLXE * real_BL[..., None, None]).sum((0, 1, 2)),
            "share_E": (share_BLE * real_BL[..., None]).sum((0, 1)),
            "square": (jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)) * real_BL).sum(),
        }
        return sharding.constrain(y_BLD, "BLD"), aside

    def _mixed(
        self,
        grouped: Callable[..., jax.Array],
        x_BLD: jax.Array,
        weight_BLX: jax.Array,
        expert_BLX: jax.Array,
        own_E: jax.Array,
        gate_EDF: jax.Array,
        up_EDF: jax.Array,
        down_EFD: jax.Array,
    ) -> jax.Array:
        """What the experts `own_E` (neighbours) add to each token."""
        B, L, D = x_BLD.shape
        # Pairs of token and expert, sorted by expert: the own ones first, all others behind them.
        mine_J = expert_BLX.reshape(-1) - own_E[0]
        mine_J = jnp.where((mine_J >= 0) & (mine_J < own_E.size), mine_J, own_E.size)
        order_J = jnp.argsort(mine_J)
        place_J = jnp.argsort(order_J)
        sizes_E = (mine_J[:, None] == jnp.arange(own_E.size)[None]).sum(0, dtype=jnp.int32)
        x_JD = _spread(x_BLD.reshape(-1, D), order_J, place_J)
        hidden_JF = ACTIVATIONS[self.act](grouped(x_JD, gate_EDF, sizes_E)) * grouped(x_JD, up_EDF, sizes_E)
        y_BLXD = _spread(grouped(hidden_JF, down_EFD, sizes_E), place_J, order_J).reshape(B, L, -1, D)
        return (y_BLXD.astype(jnp.float32) * weight_BLX[..., None]).sum(2).astype(x_BLD.dtype)


@jax.custom_vjp
def _spread(rows: jax.Array, order_J: jax.Array, place_J: jax.Array) -> jax.Array:
    """Each row of [J / n, D] n times in a row, put in the order `order_J`, [J, D].

    `place_J` is the inverse of `order_J`: with it the gradient is a gather as well, and no scatter.
    """
    return rows[order_J // (order_J.size // rows.shape[0])]


def _spread_forward(rows: jax.Array, order_J: jax.Array, place_J: jax.Array) -> tuple[jax.Array, Any]:
    return _spread(rows, order_J, place_J), (place_J, rows.shape[0])


def _spread_backward(saved: Any, g_JD: jax.Array) -> tuple[jax.Array, None, None]:
    place_J, n = saved
    return g_JD[place_J].reshape(n, -1, g_JD.shape[1]).sum(1), None, None


_spread.defvjp(_spread_forward, _spread_backward)


class MoeBlock(PreNormBlock):
    """A PreNormBlock whose feed-forward is a Moe. `routed`: what the routers leave aside is asked for, else None."""

    def __init__(self, attn: Attention, mlp: Moe, norm: Callable[[], Any], *, routed: bool, drop: float = 0.0):
        super().__init__(attn, mlp, norm, drop=drop)
        self.routed = routed

    def __call__(
        self, over_BMD: jax.Array, sight: Sight, key: jax.Array | None, at_BS: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        if at_BS is None or not self.routed:
            return super().__call__(over_BMD, sight, key, at_BS)
        x_BLD, aside = super().__call__(over_BMD, sight, key)  # losses are over every token of every layer
        return pick(x_BLD, at_BS), aside

    def feed(self, x_BLD: jax.Array, sight: Sight) -> tuple[jax.Array, Any]:
        y_BLD, aside = self.mlp(x_BLD, sight.where.query_BL > 0)
        return y_BLD, aside if self.routed else None


def router_losses(aside: Aside, *, balance: float, z: float) -> Losses:
    """The losses of all routers together, each times its coefficient; of a coefficient 0 there is none.

    balance: experts x the sum over experts of how many of a token's choices it is x its mean probability (Fedus et al.
    2021, eq. 4, over the tokens of all layers, as transformers has it).
    z: the mean of logsumexp(logits)^2 (Zoph et al. 2022, eq. 5).
    """
    tokens = aside["tokens"]
    mean = jax.tree.map(lambda total: total / jnp.maximum(tokens, 1), aside)
    values = {
        "router_balance": balance * aside["share_E"].size * (mean["chosen_E"] * mean["share_E"]).sum(),
        "router_z": z * mean["square"],
    }
    wanted = {"router_balance": balance, "router_z": z}
    return {name: (value * tokens, tokens) for name, value in values.items() if wanted[name]}
