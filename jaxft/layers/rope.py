"""Rotary positions: each pair of a head's dimensions is turned by an angle that grows with the token's position.

Source: Su et al. 2021; the scalings for longer contexts by Chen et al. 2023 (linear), bloc97 2023 (dynamic NTK), Peng
et al. 2023 (YaRN), Ding et al. 2024 (LongRoPE), and Llama 3.1 (its smoothing by wavelength). Names of the options are
the hub's, in `rope_parameters` of config.json.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.registry import UserError, nearest
from jaxft.sharding import constrain

# type -> (options it must have, options it may have)
OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
}
NUMBERS = {  # options that are numbers above 0
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "rope_theta", "partial_rotary_factor"),
}
COMMON = ("rope_type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of every token, float32 [B, L, half of the turned dimensions]."""

    cos_BLK: jax.Array
    sin_BLK: jax.Array
    interleaved: bool = False  # pairs are neighbours (DeepSeek) rather than halves of the head

    def at(self, position_BS: jax.Array) -> Self:
        """Those of the tokens at these places of each row."""
        cos, sin = (jnp.take_along_axis(x, position_BS[:, :, None], axis=1) for x in (self.cos_BLK, self.sin_BLK))
        return type(self)(cos, sin, self.interleaved)

    def __call__(self, x_BLHK: jax.Array) -> jax.Array:
        """`x` turned, in its dtype; dimensions of a head beyond those that have an angle stay."""
        half = self.cos_BLK.shape[-1]
        cos, sin = self.cos_BLK[:, :, None], self.sin_BLK[:, :, None]
        turned, rest = x_BLHK[..., : 2 * half].astype(jnp.float32), x_BLHK[..., 2 * half :]
        if self.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
        else:
            a, b = turned[..., :half], turned[..., half:]
            pairs = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        pairs = pairs.astype(x_BLHK.dtype)
        return jnp.concatenate([pairs, rest], -1) if rest.shape[-1] else pairs


jax.tree_util.register_dataclass(Rotary, data_fields=["cos_BLK", "sin_BLK"], meta_fields=["interleaved"])


@dataclass(frozen=True)
class Rope:
    """How positions become angles: constants of a model. Made by `Rope.of`."""

    options: tuple[tuple[str, Any], ...]
    dim: int  # dimensions of a head that are turned
    positions: int  # the longest input of the model
    interleaved: bool = False

    @classmethod
    def of(cls, rope: Mapping[str, Any], *, head_dim: int, positions: int, interleaved: bool = False) -> Self:
        """From the hub's `rope_parameters`. Raises UserError for an unknown type and options it does not have."""
        kind = rope["rope_type"]
        if kind not in OPTIONS:
            raise UserError(
                f"rope_type={kind!r} is not supported; supported: {', '.join(OPTIONS)}{nearest(kind, OPTIONS)}"
            )
        must, may = OPTIONS[kind]
        given = {name: value for name, value in rope.items() if value is not None}
        if missing := [name for name in must if name not in given]:
            raise UserError(f"rope_type={kind!r} needs {', '.join(missing)}")
        if strange := [f"{name}={given[name]!r}" for name in given if name not in (*COMMON, *must, *may)]:
            raise UserError(f"rope_type={kind!r} does not know {', '.join(strange)}")
        for name in NUMBERS & given.keys():
            value = given[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UserError(f"rope {name}={value!r} must be a number above 0")
        dim = int(head_dim * given.get("partial_rotary_factor", 1.0))
        for name in ("short_factor", "long_factor"):
            if name in given:
                if len(given[name]) != dim // 2:
                    raise UserError(
                        f"rope {name} has {len(given[name])} numbers; for {dim} turned dimensions it needs {dim // 2}"
                    )
                given[name] = tuple(given[name])
        return cls(tuple(sorted(given.items())), dim, positions, interleaved)

    @property
    def turn(self) -> int | None:
        """The length of a text beyond which all of its angles are others; None: they depend on no length."""
        options = dict(self.options)
        lengths = {"dynamic": self.positions, "longrope": options.get("original_max_position_embeddings")}
        return lengths.get(options["rope_type"])

    def rotary(self, position_BL: jax.Array) -> Rotary:
        """The angles of tokens at `position_BL`, their places in their own text."""
        options, position_BL = dict(self.options), constrain(position_BL, "BL")
        inv_freq_K = _FREQUENCIES[options["rope_type"]](self, options, position_BL)
        # float32: positions above 256 are not distinct in bfloat16, so angles would repeat.
        angle_BLK = position_BL[:, :, None].astype(jnp.float32) * jnp.reshape(inv_freq_K, (1, 1, -1))
        scale = attention_factor(options, self.positions)
        return Rotary(jnp.cos(angle_BLK) * scale, jnp.sin(angle_BLK) * scale, self.interleaved)


def attention_factor(options: Mapping[str, Any], positions: int) -> float:
    """What cosines and sines are multiplied by: 1 but for YaRN and LongRoPE."""
    kind, given = options["rope_type"], options.get("attention_factor")
    if kind not in ("yarn", "longrope"):
        return 1.0
    if given is not None:
        return float(given)
    original = options["original_max_position_embeddings"]
    factor = options.get("factor") or positions / original
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    mscale, all_dim = options.get("mscale"), options.get("mscale_all_dim")
    if mscale and all_dim:
        return yarn_scale(factor, mscale) / yarn_scale(factor, all_dim)
    return yarn_scale(factor, 1.0)


def yarn_scale(factor: float, mscale: float) -> float:
    """Peng et al. 2023, eq. 22, as the hub's models have it: 0.1 mscale ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _plain(rope: Rope, theta: Any) -> Any:
    """1 / theta^(2k / dim), float32 [dim / 2]; `theta` may be traced."""
    return 1.0 / theta ** (np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim))


def _default(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    return _plain(rope, np.float32(options["rope_theta"]))


def _linear(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    return _default(rope, options, position_BL) / np.float32(options["factor"])


def _dynamic(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    """The base grows with the longest text of the batch once that passes the trained length."""
    factor, longest = options["factor"], jnp.maximum(position_BL.max() + 1, rope.positions).astype(jnp.float32)
    growth = (factor * longest / rope.positions - (factor - 1)) ** (rope.dim / (rope.dim - 2))
    return _plain(rope, options["rope_theta"] * growth)


def _llama3(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    inv_freq_K = _default(rope, options, position_BL)
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    original, factor = options["original_max_position_embeddings"], options["factor"]
    turns_K = original * inv_freq_K / np.float32(2 * math.pi)  # within the original context
    smooth_K = np.clip((turns_K - low) / (high - low), 0, 1)
    return ((1 - smooth_K) * inv_freq_K / factor + smooth_K * inv_freq_K).astype(np.float32)


def _yarn(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    theta, original = options["rope_theta"], options["original_max_position_embeddings"]
    factor = options["factor"]

    def dim_of(turns: float) -> float:
        """The dimension that makes so many turns within the original context."""
        return rope.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dim_of(options.get("beta_fast") or 32), dim_of(options.get("beta_slow") or 1)
    if options.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    ramp_K = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - first) / max(last - first, 0.001), 0, 1)
    inv_freq_K = _default(rope, options, position_BL)
    return (inv_freq_K / factor * ramp_K + inv_freq_K * (1 - ramp_K)).astype(np.float32)


def _longrope(rope: Rope, options: Mapping[str, Any], position_BL: jax.Array) -> Any:
    """One set of factors for batches whose longest text fits the original context, another beyond, as transformers."""
    inv_freq_K = _default(rope, options, position_BL)
    short_K, long_K = (inv_freq_K / np.asarray(options[name], np.float32) for name in ("short_factor", "long_factor"))
    return jnp.where(position_BL.max() + 1 > options["original_max_position_embeddings"], long_K, short_K)


_FREQUENCIES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
