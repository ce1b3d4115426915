"""What a network begins with: words alone, the sum of three that a BERT has, or the patches of an image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.layers.dense import affine
from jaxft.layers.dropout import dropout
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Init, parameter, zeros
from jaxft.sharding import constrain


class Embed(nnx.Module):
    """A table [rows, D] looked up by integer id. Ids out of range would clamp: they are refused before.

    `bias`: of each row, for whoever takes the table to unembed. `adapter`: what a method of jaxft.peft has put here; it
    is asked in the place of this layer, with this layer.
    """

    def __init__(self, rows: int, d_model: int, axes: tuple[str, str], init: Init, bias: bool = False):
        self.letter = axes[0]
        self.table = parameter((rows, d_model), axes, init)
        self.bias = parameter((rows,), axes[:1], zeros) if bias else None
        self.adapter: Any = nnx.data(None)

    def __call__(self, ids_BL: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, L] -> [B, L, D] in `dtype`."""
        return self.plain(ids_BL, dtype) if self.adapter is None else self.adapter(ids_BL, self, dtype)

    def plain(self, ids_BL: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The same without an adapter."""
        # The columns are gathered before the look-up: a table sharded both ways makes XLA rematerialise it in full.
        table = constrain(self.table[...].astype(dtype), self.letter + "_")
        return constrain(jnp.take(table, ids_BL, axis=0, mode="clip"), "BLD")


@dataclass(frozen=True)
class Sinusoid:
    """Fixed positions: sines in the first half of the dimensions, cosines in the second (Vaswani et al. 2017)."""

    d_model: int
    positions: int

    def __call__(self, position_BL: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Places in a text, below `positions`, [B, L] -> [B, L, D] in `dtype`."""
        # In float64, as a constant of the program: sines of large angles lose their digits in float32.
        inv_freq_K = 10000.0 ** (-2 * np.arange((self.d_model + 1) // 2) / self.d_model)
        angle_LK = np.arange(self.positions)[:, None] * inv_freq_K[None]
        table_LD = np.concatenate([np.sin(angle_LK), np.cos(angle_LK[:, : self.d_model // 2])], 1).astype(np.float32)
        return constrain(jnp.take(jnp.asarray(table_LD, dtype), position_BL, axis=0, mode="clip"), "BLD")


class TokenEmbed(nnx.Module):
    """Words alone, times `scale`, then `norm` and dropout: positions come with the attention."""

    most = None  # the longest text: any

    def __init__(
        self,
        vocab: int,
        d_model: int,
        init: Init,
        *,
        scale: float = 1.0,
        norm: Callable[[jax.Array], jax.Array] | None = None,
        drop: float = 0.0,
    ):
        self.scale, self.drop = scale, drop
        self.word = Embed(vocab, d_model, ("V", "D"), init)
        self.norm = norm

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        """ids [B, L] -> [B, L, D] in `dtype`."""
        x_BLD = self.word(batch["ids"], dtype)
        if self.scale != 1:
            x_BLD = x_BLD * jnp.asarray(self.scale, dtype)
        return dropout(x_BLD if self.norm is None else self.norm(x_BLD), self.drop, key)


class TextEmbed(nnx.Module):
    """Word + learned position + token type, then norm and dropout.

    `types` or `positions` 0: the network has none. `eps` None: no norm follows. `first_position` is the row of the
    position table that the first token of a segment takes.
    """

    def __init__(
        self,
        *,
        vocab: int,
        positions: int,
        types: int,
        d_model: int,
        eps: float | None,
        dropout: float,
        init: Init,
        first_position: int = 0,
    ):
        self.drop, self.first_position, self.most = dropout, first_position, positions or None
        self.word = Embed(vocab, d_model, ("V", "D"), init)
        self.position = Embed(positions + first_position, d_model, ("T", "D"), init) if positions else None
        self.type = Embed(types, d_model, ("T", "D"), init) if types else None
        self.norm = None if eps is None else LayerNorm(d_model, eps)

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        """ids, position, type [B, L] -> [B, L, D] in `dtype`."""
        x_BLD = self.word(batch["ids"], dtype)
        if self.position is not None:
            x_BLD = x_BLD + self.position(batch["position"] + self.first_position, dtype)
        if self.type is not None:
            x_BLD = x_BLD + self.type(batch["type"], dtype)
        if self.norm is not None:
            x_BLD = self.norm(x_BLD)
        return dropout(x_BLD, self.drop, key)


class PatchEmbed(nnx.Module):
    """An image cut into square patches, each of them projected; before them a learned token; learned positions.

    A convolution whose stride is its own size is this one product (Dosovitskiy et al. 2020, eq. 1).
    """

    most = None  # no texts

    def __init__(self, *, patch: int, channels: int, positions: int, d_model: int, dropout: float, init: Init):
        self.drop = dropout
        self.first = parameter((1, 1, d_model), ("B", "L", "D"), init)
        self.position = parameter((1, positions, d_model), ("B", "T", "D"), init)
        self.patch = PatchDense(patch, channels, d_model, init)

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None, dtype: Any) -> jax.Array:
        """pixels [B, rows, columns, channels] -> [B, L, D] in `dtype`, the patches row by row."""
        x_BLD = self.patch(batch["pixels"].astype(dtype))
        first_BLD = jnp.broadcast_to(self.first[...].astype(dtype), (x_BLD.shape[0], 1, x_BLD.shape[2]))
        x_BLD = jnp.concatenate([first_BLD, x_BLD], axis=1) + self.position[...].astype(dtype)
        return dropout(constrain(x_BLD, "BLD"), self.drop, key)


class PatchDense(nnx.Module):
    """The product of each patch with a kernel [rows, columns, channels, D]."""

    def __init__(self, patch: int, channels: int, d_model: int, init: Init):
        self.kernel = parameter((patch, patch, channels, d_model), ("Y", "W", "I", "D"), init)
        self.bias = parameter((d_model,), ("D",), zeros)

    def __call__(self, pixels_BYWI: jax.Array) -> jax.Array:
        """[B, rows, columns, channels] -> [B, patches, D]."""
        kernel_YWID = self.kernel[...].astype(pixels_BYWI.dtype)
        size, _, channels, d_model = kernel_YWID.shape
        B, rows, columns, _ = pixels_BYWI.shape
        cut = pixels_BYWI.reshape(B, rows // size, size, columns // size, size, channels).swapaxes(2, 3)
        flat = cut.reshape(B, -1, size * size * channels)
        return affine(flat, kernel_YWID.reshape(-1, d_model), self.bias[...].astype(flat.dtype))
