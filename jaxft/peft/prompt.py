"""Prompt tuning: trained vectors stand before the words of every text (Lester et al. 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.embed import Embed
from jaxft.layers.encdec import EncDec
from jaxft.layers.parameter import Normal
from jaxft.layers.virtual import Virtual
from jaxft.peft.exchange import UNWRAPPED, Module, Tensors, check_shape
from jaxft.peft.methods import Adapter, Flat, Method
from jaxft.registry import UserError

INITS = ("words", "normal")
PATH = "embed/word/adapter/vectors"
TENSOR = "prompt_embeddings"


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """`tokens` trained vectors before the words of every text; of an encoder-decoder, of every source.

    Other than most methods it does not begin as the plain network. `init` "words": as words drawn from the vocabulary,
    which is what Lester et al. found better than "normal", N(0, 1) as in `peft`. A packed row holds them before each of
    its texts, and so grows by `tokens` times input.pack: rows are as if every text stood alone. A head that judges a
    text by its first token reads the first vector; the logits of tokens are those of the text's own. No loss is of the
    first token of a text as what follows on the last vector, which `peft` counts where that token is labelled.
    """

    peft_type = "PROMPT_TUNING"
    hub_prefix = UNWRAPPED

    tokens: int = 16
    init: str = "words"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"peft.tokens={self.tokens} must be 1 or more")
        if self.init not in INITS:
            raise UserError(f"peft.init={self.init!r} must be one of: {', '.join(INITS)}")

    def attach(self, model: Any) -> None:
        if not hasattr(model.embed, "word"):
            raise UserError(
                "peft.name='prompt' stands before the words that a model begins with, and this one begins with images, "
                "or with words that it projects; use 'lora'"
            )
        if isinstance(model, EncDec) and not model.answers:
            # The decoder would read the source with its vectors once more, which transformers refuses to compute.
            raise UserError("peft.name='prompt' needs a head that writes on this encoder-decoder; use 'lora'")
        model.embed.word.adapter = PromptAdapter(model.embed.word, self.tokens, scale_of(model))
        model.virtual = Virtual(self.tokens, inserted=True)

    def started(self, params: Flat) -> Flat:
        if self.init != "words":
            return {}
        table_VD = params["embed/word/table"]
        word_V = (table_VD != 0).any(1)  # not one of the rows that fill up the table
        share_V = word_V / word_V.sum()
        ids_T = jax.random.choice(jax.random.key(0), len(table_VD), (self.tokens,), p=share_V)
        return {PATH: table_VD[ids_T].astype(params[PATH].dtype)}

    # ---- the format of peft ----

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        """One tensor [tokens, D], scaled like words where the model scales these."""
        vectors_TD = added[PATH]
        return {
            "num_virtual_tokens": self.tokens,
            "token_dim": vectors_TD.shape[1],
            "num_attention_heads": 1,  # these are of no use to it; but what is missing would be looked for in the model
            "num_layers": 1,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }, {TENSOR: vectors_TD * np.float32(scale_of(model))}

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        if TENSOR not in tensors:
            raise UserError(f"{folder} has no {TENSOR}, which every adapter of {cls.peft_type} has")
        whole_TD, width = tensors.pop(TENSOR), model.embed.word.table.shape[1]
        check_shape(TENSOR, whole_TD, (None, width), folder)
        # Of an encoder-decoder `peft` may keep as many again for the decoder, and never reads them.
        vectors_TD = whole_TD[: int(section["num_virtual_tokens"])] / np.float32(scale_of(model))
        return cls(tokens=len(vectors_TD)), {PATH: vectors_TD}


def scale_of(model: Any) -> float:
    """What the embedding multiplies words by; vectors of `peft` are not multiplied any more."""
    return getattr(model.embed, "scale", 1.0)


class PromptAdapter(Adapter):
    def __init__(self, word: Embed, tokens: int, scale: float):
        super().__init__(word.table)
        width = word.table.get_value().shape[1]
        self.vectors = self.parameter((tokens, width), ("T", "D"), Normal(1.0 / scale))

    def __call__(self, ids_BL: jax.Array, word: Embed, dtype: Any) -> jax.Array:
        """[B, L] -> [B, L, D] in `dtype`: words, and vector p for the id -1 - p (layers.virtual)."""
        virtual_BL = jnp.take(self.vectors[...].astype(dtype), jnp.maximum(-1 - ids_BL, 0), axis=0, mode="clip")
        return jnp.where((ids_BL < 0)[:, :, None], virtual_BL, word.plain(jnp.maximum(ids_BL, 0), dtype))
