"""Prefix tuning: every self-attention sees trained keys and values before those of the text (Li & Liang 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.attention import Attention, Sight, Where
from jaxft.layers.encdec import EncDec
from jaxft.layers.kernels import choice, prefixed
from jaxft.layers.parameter import Normal, zeros
from jaxft.layers.virtual import Virtual
from jaxft.peft import targets
from jaxft.peft.exchange import UNWRAPPED, Module, Tensors, check_shape
from jaxft.peft.methods import Adapter, Flat, Method
from jaxft.registry import UserError
from jaxft.sharding import constrain

# N(0, 1) as torch gives the table that `peft` keeps them in.
INITS = {"normal": Normal(1.0), "zeros": zeros}
TENSOR = "prompt_embeddings"


@dataclass(frozen=True, kw_only=True)
class Prefix(Method):
    """`tokens` trained keys and values of every layer's own, which all texts see; of an encoder-decoder the decoder's.

    Other than most methods it does not begin as the plain network: `init` "normal" or "zeros", keys of which are seen,
    too. They are trained as they are, without the MLP that Li & Liang train them through (eq. 3): a finished adapter of
    `peft` does not have it any more either. The positions of a text begin after the prefix, whose keys have none.
    """

    peft_type = "PREFIX_TUNING"
    hub_prefix = UNWRAPPED

    tokens: int = 16
    init: str = "normal"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"peft.tokens={self.tokens} must be 1 or more")
        if self.init not in INITS:
            raise UserError(f"peft.init={self.init!r} must be one of: {', '.join(INITS)}")

    def attach(self, model: Any) -> None:
        found = layers(model)
        if model.how.attention in ("splash", "cudnn"):
            raise UserError(
                f'model.attention="{model.how.attention}" sees keys of one text alone, and a prefix is seen by all of '
                'a row; use "auto"'
            )
        for attn in found.values():
            attn.adapter = PrefixAdapter(attn, self)
        side: Any = model.decoder if isinstance(model, EncDec) else model
        side.virtual = Virtual(self.tokens)

    # ---- the format of peft ----

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        """One tensor [tokens, pairs x 2 x G x K]: of each pair the keys, then the values."""
        found = layers(model)
        pairs = [[added[f"{path}/adapter/{name}"] for name in "kv"] for path in found]
        whole = [np.stack([array.reshape(-1, *array.shape[-2:]) for array in pair], 1) for pair in pairs]
        layer_N2TF = np.concatenate(whole)
        # As many pairs as each layer needs to have one of its own; those that no layer reads are zero.
        count = len(layer_N2TF) * (2 if isinstance(model, EncDec) else 1)
        pair_N2TF = np.zeros((count, *layer_N2TF.shape[1:]), np.float32)
        pair_N2TF[_pairs_of(model, len(layer_N2TF), count)] = layer_N2TF
        heads, width = _sizes(found)
        return {
            "num_virtual_tokens": self.tokens,
            "token_dim": width,
            "num_attention_heads": heads,
            "num_layers": count,
            "num_transformer_submodules": 2 if isinstance(model, EncDec) else 1,
            "prefix_projection": False,
            "encoder_hidden_size": width,
        }, {TENSOR: np.moveaxis(pair_N2TF, 2, 0).reshape(self.tokens, -1)}

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        if TENSOR not in tensors:
            raise UserError(f"{folder} has no {TENSOR}, which every adapter of {cls.peft_type} has")
        found, whole_TX = layers(model), tensors.pop(TENSOR)
        counts = {path: attn.k.kernel.get_value().shape[:-2] for path, attn in found.items()}
        n, (_, width) = sum(int(np.prod(count)) for count in counts.values()), _sizes(found)
        pairs = int(section["num_layers"]) if isinstance(model, EncDec) else n
        check_shape(TENSOR, whole_TX, (None, pairs * 2 * width), folder)
        layer_N2TF = np.moveaxis(whole_TX.reshape(-1, pairs, 2, width), 0, 2)[_pairs_of(model, n, pairs)]
        added, at = {}, 0
        for path, count in counts.items():
            own = layer_N2TF[at : at + int(np.prod(count))]
            at += len(own)
            added |= {f"{path}/adapter/{name}": own[:, i].reshape(*count, -1, width) for i, name in enumerate("kv")}
        return cls(tokens=len(whole_TX)), added


def layers(model: Any) -> dict[str, Attention]:
    """Path -> self-attention that is given a prefix, from the lowest layer on. Raises UserError where there is none."""
    of = "decoder/" if isinstance(model, EncDec) else ""
    found = {path: attn for path, attn in targets.attention(model).items() if path.startswith(of)}
    found = {path: attn for path, attn in found.items() if not path.endswith("/cross")}
    if of and model.decoder is None:
        raise UserError("peft.name='prefix' is of a decoder, and with this head the model has none; use 'lora'")
    if not hasattr(model.embed, "word"):
        raise UserError("peft.name='prefix' stands before texts, and this model reads images; use 'lora'")
    if not found or any(type(attn) is not Attention for attn in found.values()):
        raise UserError(
            "peft.name='prefix': the attention of this model scores distances between tokens, and a prefix has none; "
            "use 'lora'"
        )
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("first/")))


def _pairs_of(model: Any, layers: int, pairs: int) -> np.ndarray:
    """Which of the pairs of `peft` each layer has.

    Of an encoder-decoder `peft` 0.21 takes two for each layer of the decoder, the second for its attention over the
    source, drops that, and begins anew where there are no more: with as many pairs as layers, two layers share one.
    """
    return np.arange(layers) * 2 % pairs if isinstance(model, EncDec) else np.arange(layers)


def _sizes(found: Mapping[str, Attention]) -> tuple[int, int]:
    """(heads of keys, width of all of them)."""
    attn = next(iter(found.values()))
    return attn.kv_heads, attn.kv_heads * attn.head_dim


class PrefixAdapter(Adapter):
    def __init__(self, attn: Attention, method: Prefix):
        super().__init__(attn.k.kernel)
        self.shape = method.tokens, attn.kv_heads, attn.head_dim
        width = attn.kv_heads * attn.head_dim
        self.k = self.parameter((method.tokens, width), ("T", "GK"), INITS[method.init])
        self.v = self.parameter((method.tokens, width), ("T", "GK"), INITS[method.init])

    def __call__(
        self,
        q_BLHK: jax.Array,
        k_BMGK: jax.Array,
        v_BMGK: jax.Array,
        sight: Sight,
        scale: float,
        *,
        softcap: float,
        bias_BHLM: jax.Array | None,
        drop: float,
        key: jax.Array | None,
    ) -> jax.Array:
        """As layers.attention.attention, [B, L, H, K]."""
        call = choice.Call.of(q_BLHK, k_BMGK, v_BMGK, sight.where, softcap, bias_BHLM is not None, drop > 0)
        if call.cut > 1:
            raise UserError(
                f"peft.name='prefix' needs whole rows, and sharding.activations.L cuts them into {call.cut} pieces; "
                "set mesh.context=1"
            )
        B = len(q_BLHK)
        own = (constrain(jnp.broadcast_to(x, (B, *x.shape)), "B_GK") for x in (self._pairs(x, k_BMGK) for x in "kv"))
        k_BTGK, v_BTGK = own
        return prefixed.attend(
            q_BLHK * jnp.asarray(scale, q_BLHK.dtype),
            (k_BMGK, v_BMGK, sight.where, bias_BHLM),
            (k_BTGK, v_BTGK, self._where(sight.where), sight.prefix_BHLM),
            softcap=softcap,
            drop=drop,
            key=key,
            block=choice.block(choice.wish(), call),
        )

    def _pairs(self, name: str, like: jax.Array) -> jax.Array:
        """Keys or values, [T, G, K]."""
        return getattr(self, name)[...].astype(like.dtype).reshape(self.shape)

    def _where(self, where: Where) -> Where:
        """Who sees the prefix: everybody, but for a window that has left it behind."""
        everybody_BL, tokens = jnp.ones_like(where.query_BL), self.shape[0]
        # Places matter for windows alone; and a query at a place of its own is not taken for one of the prefix.
        at_BL = tokens + (where.position_BL() if where.window else jnp.zeros_like(everybody_BL))
        return Where(everybody_BL, everybody_BL[:, :1].repeat(tokens, 1), at_BL, where.causal, where.window)
