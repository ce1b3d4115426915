"""Disentangled attention: content meets content, position and content meet each other (He et al. 2020, section 3.1)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.layers.attention import Attention, Sight
from jaxft.layers.dense import Dense
from jaxft.layers.dropout import dropout
from jaxft.layers.norm import LayerNorm
from jaxft.layers.parameter import Init, parameter
from jaxft.sharding import constrain

TERMS = ("c2p", "p2c")  # the query's content meets its distance to the key; the key's content meets it


@dataclass(frozen=True)
class Buckets:
    """Which row of a table of 2 * `half` stands for which distance: constants of a model.

    Row `half` is distance 0, rows above it are keys that stand before the query. `furthest` 0: each distance has its
    row. Else one has up to half / 2, and wider buckets follow, logarithmically, up to `furthest`.
    """

    half: int
    furthest: int

    def rows(self, away: np.ndarray) -> np.ndarray:
        """The row of each distance; distances beyond the table take its ends."""
        return np.clip((self._log(away) if self.furthest else away) + self.half, 0, 2 * self.half - 1)

    def _log(self, away: np.ndarray) -> np.ndarray:
        exact = self.half // 2
        # float32 as in transformers: what is rounded up here decides where a bucket ends.
        share = np.log(np.maximum(np.abs(away), exact).astype(np.float32) / np.float32(exact))
        share /= np.log(np.float32((self.furthest - 1) / exact))
        far = np.ceil(share * np.float32(exact - 1)).astype(away.dtype) + exact
        return np.where(np.abs(away) <= exact, away, np.sign(away) * far)


class Distances(nnx.Module):
    """A vector for each row of `Buckets`, one table for all layers; with `eps` normalised."""

    def __init__(self, buckets: Buckets, d_model: int, init: Init, *, eps: float | None):
        self.table = parameter((2 * buckets.half, d_model), ("T", "D"), init)
        self.norm = None if eps is None else LayerNorm(d_model, eps)

    def __call__(self, dtype: Any) -> jax.Array:
        """[T, D] in `dtype`."""
        table_TD = self.table[...].astype(dtype)
        return table_TD if self.norm is None else self.norm(table_TD)


@dataclass(frozen=True, kw_only=True)
class RelativeSight(Sight):
    distance_TD: jax.Array


class DisentangledAttention(Attention):
    """Self-attention whose scores have a term each of `terms` beside that of contents, all scaled by their number.

    A position is projected as a key for c2p and as a query for p2c, by kernels of its own or, with `share`, by those
    of the contents. `drop_distance` is the rate for the table of distances, `drop` that for the weights.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        init: Init,
        *,
        buckets: Buckets,
        terms: Collection[str],
        share: bool,
        drop: float,
        drop_distance: float,
    ):
        super().__init__(d_model, heads, init, scale=(d_model // heads * (1 + len(terms))) ** -0.5, drop=drop)
        self.buckets, self.terms, self.drop_distance = buckets, frozenset(terms), drop_distance
        self.pos_k = Dense(d_model, d_model, ("D", "GK"), init) if "c2p" in terms and not share else None
        self.pos_q = Dense(d_model, d_model, ("D", "HK"), init) if "p2c" in terms and not share else None

    def bias(self, q_BLHK: jax.Array, k_BMGK: jax.Array, sight: Sight, key: jax.Array | None) -> jax.Array:
        """The terms of positions, [B, H, L, M] in float32.

        Contents are scored against the 2 M distances that a row of M has, and the score of each pair is read from
        there. The other way, to score the table's rows and to look pairs up by an [L, M] index, computes less where
        a row is longer than the table, but its gradient is a scatter of [B, H, L, M] numbers: on a CPU core a step of
        6 layers x 384 took 14 % longer. An [L, M, T] one-hot would be larger than all else.
        """
        assert isinstance(sight, RelativeSight)
        M, away_BLM = k_BMGK.shape[1], None if sight.where.at_BL is None else sight.where.away()
        table_TD = dropout(sight.distance_TD, self.drop_distance, None if key is None else jax.random.fold_in(key, 1))
        z = np.arange(2 * M)
        terms_BHLM = []
        if "c2p" in self.terms:
            key_ZHK = self._positions(self.k if self.pos_k is None else self.pos_k, table_TD, M - z)
            score_BHLZ = _scores("BLHK,ZHK->BHLZ", q_BLHK, key_ZHK)
            terms_BHLM.append(by_distance(score_BHLZ, None if away_BLM is None else M - away_BLM))
        if "p2c" in self.terms:
            query_ZHK = self._positions(self.q if self.pos_q is None else self.pos_q, table_TD, z - M)
            score_BHMZ = _scores("BMHK,ZHK->BHMZ", k_BMGK, query_ZHK)
            score_BHML = by_distance(score_BHMZ, None if away_BLM is None else (M + away_BLM).swapaxes(1, 2))
            terms_BHLM.append(score_BHML.swapaxes(2, 3))
        return constrain(sum(terms_BHLM[1:], terms_BHLM[0]), "BHLM")

    def _positions(self, project: Dense, table_TD: jax.Array, away: np.ndarray) -> jax.Array:
        """The table's rows for distances `away`, projected and scaled, [Z, H, K]."""
        row, K = self.buckets.rows(away), self.head_dim
        first, end = int(row.min()), int(row.max()) + 1  # short rows use the middle of the table alone
        used_TF = project(table_TD[first:end]) * jnp.asarray(self.scale, table_TD.dtype)
        # A product with ones and zeros is as exact as a look-up, and its gradient is a product again.
        picked_ZF = jax.nn.one_hot(row - first, end - first, dtype=used_TF.dtype) @ used_TF
        return picked_ZF.reshape(len(row), self.heads, K)


def _scores(letters: str, content: jax.Array, position_ZHK: jax.Array) -> jax.Array:
    return jnp.einsum(letters, content, position_ZHK, preferred_element_type=jnp.float32)


def by_distance(score_BHXZ: jax.Array, z_BXY: jax.Array | None) -> jax.Array:
    """Scores of each x against each distance -> against each y, [B, H, X, Y].

    The distance of place y from place x is column y - x + Z / 2. `z_BXY` are these columns, None: for all places of
    a row, X = Y = Z / 2.
    """
    if z_BXY is not None:
        return jnp.take_along_axis(score_BHXZ, z_BXY[:, None], axis=-1)
    B, H, X, Z = score_BHXZ.shape
    # Row x begins one column before the row above it: read on end, rows are Z - 1 apart (Huang et al. 2018).
    end_to_end = score_BHXZ.reshape(B, H, X * Z)[..., X:]
    return end_to_end.reshape(B, H, X, Z - 1)[..., :X]
