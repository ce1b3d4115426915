"""The block of an encoder-decoder: attention, on the target's side attention over the source too, feed-forward."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
from flax import nnx

from jaxft.layers.attention import Attention, Sight
from jaxft.layers.block import add
from jaxft.layers.dropout import dropout
from jaxft.layers.stack import pick


@dataclass(frozen=True)
class Source:
    """What a decoder is told of the source: the encoder's output, and which of it each target token sees.

    The output is None where `sight` remembers all that is computed of it.
    """

    x_BMD: Any
    sight: Sight

    def at(self, position_BS: jax.Array) -> Self:
        """The same for the target tokens at these places alone."""
        return type(self)(self.x_BMD, self.sight.at(position_BS))


class SideBlock(nnx.Module):
    """A block of either side. Each part: norm, compute, dropout, add; or with `norm_last` compute, dropout, add, norm.

    `cross` attends over the source, which an encoder's block does not. `norm` makes each of the norms; `mlp` takes
    a key for dropout of its own. `adapter`: see layers.block.add.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: Callable[[jax.Array, jax.Array | None], jax.Array],
        norm: Callable[[], Any],
        *,
        cross: Attention | None,
        norm_last: bool,
        drop: float,
    ):
        self.norm_last, self.drop = norm_last, drop
        self.attn, self.attn_norm = attn, norm()
        self.cross, self.cross_norm = cross, None if cross is None else norm()
        self.mlp, self.mlp_norm = mlp, norm()
        self.adapter = nnx.data(None)

    def __call__(
        self,
        over_BMD: jax.Array,
        sight: Sight,
        source: Source | None,
        key: jax.Array | None,
        at_BS: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """[B, M, D] -> [B, M, D], or [B, S, D] at the positions `at_BS` alone."""
        key_attn, key_cross, key_mlp = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BLD = over_BMD
        if at_BS is not None:
            x_BLD, sight = pick(over_BMD, at_BS), sight.at(at_BS)
            source = None if source is None else source.at(at_BS)

        def attend(query_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
            keys_BMD = query_BLD if at_BS is None else self._before(self.attn_norm, over_BMD)
            return self.attn(query_BLD, keys_BMD, sight, key)

        x_BLD = self._part(x_BLD, self.attn_norm, attend, key_attn)
        if source is not None:
            x_BLD = self._part(x_BLD, self.cross_norm, partial(self._read, source), key_cross)
        return self._part(x_BLD, self.mlp_norm, self.mlp, key_mlp, self.adapter), None

    def _read(self, source: Source, query_BLD: jax.Array, key: jax.Array | None) -> jax.Array:
        assert self.cross is not None, "an encoder's block has no source"
        return self.cross(query_BLD, source.x_BMD, source.sight, key)

    def _part(
        self,
        x_BLD: jax.Array,
        norm: Any,
        compute: Callable[..., jax.Array],
        key: jax.Array | None,
        adapter: Any = None,
    ) -> jax.Array:
        key_inside, key = (None, None) if key is None else jax.random.split(key)
        computed_BLD = dropout(compute(self._before(norm, x_BLD), key_inside), self.drop, key)
        return add(x_BLD, computed_BLD, norm if self.norm_last else None, adapter)

    def _before(self, norm: Any, x_BLD: jax.Array) -> jax.Array:
        return x_BLD if self.norm_last else norm(x_BLD)
