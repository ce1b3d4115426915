"""Attention over rows that are cut over devices: keys and values travel around a ring, past the queries of each device.

In every turn a device attends with its queries over the keys that it holds, in blocks (layers/kernels/chunked.py), adds
that to what it has by the log-sum-exp of both, float32, and passes the keys on; meanwhile the next ones arrive. Memory
is that of a piece: no device ever holds the keys of a whole row. The backward pass goes around once more, computes the
weights again from the log-sum-exp, and gradients of keys travel along with them until they are home. Source: Liu et al.
2023, Ring Attention.

Blocks that causality or the window rule out are not computed, and with a window keys travel no further than it reaches.
Rows are cut into neighbouring pieces: under causality the device of the first piece has the least to do, and the ring
goes at the pace of the last one, which computes in every turn. An order that evens this out (Brandon et al. 2023,
Striped Attention) would have to be that of the whole network, and is not there.

Queries at chosen places are few: each device has them all, attends over its own keys, and what comes of it is added up.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxft import sharding
from jaxft.layers.kernels import chunked
from jaxft.layers.kernels.chunked import MASKED, Operands, Plan
from jaxft.layers.kernels.devices import shared_out

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

Keys = tuple[jax.Array, jax.Array, jax.Array]  # what travels: keys, values, and the segment of each


@dataclass(frozen=True)
class _Ring:
    """What is constant in the program. Pieces go from each device to the next one, `turns` times."""

    mesh: Mesh
    queries: P  # of [B, L, H, K]; L is whole where queries stand at chosen places
    keys: P
    axes: tuple[str, ...]  # of the mesh, that rows are cut over
    ahead: int  # the piece that a device begins with is that of so many devices later
    turns: int
    block: int
    softcap: float
    drop: float
    precision: Any  # the backward pass is traced where jax.default_matmul_precision has long been left

    @property
    def size(self) -> int:
        return sharding.devices(self.axes, self.mesh)

    @property
    def placed(self) -> bool:
        return self.queries[1] is None

    def map(self, body: Callable[..., Any], where: "Where", results: tuple[P, ...]) -> Callable[..., Any]:
        """`body(ring, q, k, v, where, key, *like_queries)` of each device's pieces."""
        rows, cut = self.queries[0], P(*self.queries[:2])
        at = None if where.at_BL is None else P(rows, None)
        seen = dataclasses.replace(where, query_BL=cut, key_BM=P(*self.keys[:2]), at_BL=at)

        def run(q: jax.Array, k: jax.Array, v: jax.Array, where: "Where", key: Any, *more: jax.Array) -> Any:
            given = (self.queries, self.keys, self.keys, seen, P(), *[self.queries] * len(more))
            # Differentiated by hand, so that nobody needs to know what varies over which axes (check_vma).
            mapped = jax.shard_map(
                functools.partial(body, self), mesh=self.mesh, in_specs=given, out_specs=results, check_vma=False
            )
            return mapped(q, k, v, where, key, *more)

        return run

    def laid_out(self, q: jax.Array, k: jax.Array, v: jax.Array, where: "Where", key: Any) -> tuple[Plan, Operands]:
        """A device's pieces in blocks."""
        if key is not None:  # no two devices drop alike, but for those that compute the same
            own = [axis for part in (*self.queries, self.axes) for axis in sharding.names(part)]
            key = jax.random.fold_in(key, jax.lax.axis_index(tuple(dict.fromkeys(own))))
        plan, given = chunked.laid_out(
            *(q, k, v, where), softcap=self.softcap, bias_BHLM=None, drop=self.drop, key=key, block=self.block
        )
        return dataclasses.replace(plan, precision=self.precision), given

    def meeting(self, given: Operands, keys: Keys, owner: jax.Array, L: int, M: int) -> Operands:
        """The device's queries before the keys of the device `owner`; pieces have `L` queries and `M` keys."""
        first = 0 if self.placed else jax.lax.axis_index(self.axes) * L
        offset = first - owner * M
        at_BL = given.where.at_BL
        assert at_BL is not None
        return given._replace(
            k_BGMK=keys[0],
            v_BGMK=keys[1],
            where=dataclasses.replace(given.where, key_BM=keys[2], at_BL=at_BL + offset),
            key=None if given.key is None else jax.random.fold_in(given.key, owner),
            offset=None if self.placed else offset,
        )

    def passed(self, pieces: Any, by: int = 1) -> Any:
        """What the device `by` places before has: that of all devices moves on."""
        if by % self.size == 0:
            return pieces
        to = [(i, (i + by) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda piece: jax.lax.ppermute(piece, self.axes, to), pieces)

    def owner(self, turn: jax.Array) -> jax.Array:
        return (jax.lax.axis_index(self.axes) + self.ahead - turn) % self.size


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    where: "Where",
    *,
    softcap: float = 0.0,
    drop: float = 0.0,
    key: jax.Array | None = None,
    block: int = chunked.BLOCK,
) -> jax.Array:
    """As layers.attention.attention, of queries that are scaled already, where the rule of L cuts rows evenly.

    Which weights are dropped depends on `key` and on the mesh. A query that sees no key gets zeros.
    """
    active = sharding.active()
    assert active is not None, "without a mesh nothing is cut"
    spec, k_BMGK, v_BMGK = shared_out(active, q_BLHK, k_BMGK, v_BMGK)
    rows, _, heads, _ = spec
    axes = sharding.spec(k_BMGK.shape, "BLGK", active.rules, active.mesh)[1]
    size = sharding.devices(axes, active.mesh)
    ahead, turns = _journey(where, k_BMGK.shape[1] // size, size)
    ring = _Ring(
        mesh=active.mesh,
        queries=P(rows, axes if where.at_BL is None else None, heads, None),
        keys=P(rows, axes, heads, None),
        axes=sharding.names(axes),
        ahead=ahead,
        turns=turns,
        block=block,
        softcap=softcap,
        drop=drop,
        precision=jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
    )
    return _attend(ring, q_BLHK, k_BMGK, v_BMGK, where, key)


def _journey(where: "Where", M: int, size: int) -> tuple[int, int]:
    """With whose piece of `M` keys each device begins, in devices after it; and how many pieces it meets."""
    if not where.window:
        return 0, size
    ahead, behind = (0, where.window - 1) if where.causal else (where.window, where.window)
    ahead, behind = -(-ahead // M), -(-behind // M)
    return (ahead, turns) if (turns := ahead + 1 + behind) < size else (0, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    ring: _Ring, q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, where: "Where", key: Any
) -> jax.Array:
    return _attend_forward(ring, q_BLHK, k_BMGK, v_BMGK, where, key)[0]


def _attend_forward(ring: _Ring, *given: Any) -> tuple[jax.Array, Any]:
    out_BLHK, lse_BLHK = ring.map(_forward, given[3], (ring.queries, ring.queries))(*given)
    return out_BLHK, (given, out_BLHK, lse_BLHK)


def _attend_backward(ring: _Ring, saved: Any, grad_BLHK: jax.Array) -> Any:
    given, out_BLHK, lse_BLHK = saved
    run = ring.map(_backward, given[3], (ring.queries, ring.keys, ring.keys))
    return *run(*given, out_BLHK, lse_BLHK, grad_BLHK), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, where: "Where", key: Any) -> Any:
    """(values, log-sum-exp [B, L, H, 1]) of a device's queries."""
    plan, given = ring.laid_out(q, k, v, where, key)
    L, M = q.shape[1], k.shape[1]
    own = given.k_BGMK, given.v_BGMK, given.where.key_BM
    if ring.placed:
        here = ring.meeting(given, own, jax.lax.axis_index(ring.axes), L, M)
        out, lse = _summed(*chunked.forward(plan, here), ring.axes)
    else:

        def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
            keys, out, lse = carry
            arriving = ring.passed(keys)  # while this device computes
            here = ring.meeting(given, keys, ring.owner(number), L, M)
            return (arriving, *_merged(out, lse, *chunked.forward(plan, here))), None

        out = jnp.zeros((*given.q_BGQLK.shape[:-1], v.shape[-1]), jnp.float32)
        lse = jnp.full(out.shape[:-1], MASKED, jnp.float32)
        start = (ring.passed(own, -ring.ahead), out, lse)
        (_, out, lse), _ = jax.lax.scan(turn, start, jnp.arange(ring.turns))
    return chunked.rows_of(out.astype(q.dtype), L), chunked.rows_of(lse[..., None], L)


def _backward(
    ring: _Ring,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: "Where",
    key: Any,
    out: jax.Array,
    lse: jax.Array,
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    plan, given = ring.laid_out(q, k, v, where, key)
    L, M = q.shape[1], k.shape[1]
    out, lse, grad = (chunked.queries(x, given.k_BGMK.shape[1], plan.block_l) for x in (out, lse, grad))
    mean, lse = chunked.mean_of(grad, out), lse[..., 0]
    own = given.k_BGMK, given.v_BGMK, given.where.key_BM
    if ring.placed:
        here = ring.meeting(given, own, jax.lax.axis_index(ring.axes), L, M)
        dq, dk, dv, _ = chunked.backward(plan, here, mean, lse, grad)
        dq = jax.lax.psum(dq, ring.axes)
    else:

        def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
            keys, dq, dk, dv = carry
            arriving = ring.passed(keys)
            here = ring.meeting(given, keys, ring.owner(number), L, M)
            more_dq, more_dk, more_dv, _ = chunked.backward(plan, here, mean, lse, grad)
            return (arriving, dq + more_dq, *ring.passed((dk + more_dk, dv + more_dv))), None

        zeros = [jnp.zeros(x.shape, jnp.float32) for x in (given.q_BGQLK, *own[:2])]
        start = (ring.passed(own, -ring.ahead), *zeros)
        (_, dq, dk, dv), _ = jax.lax.scan(turn, start, jnp.arange(ring.turns))
        dk, dv = ring.passed((dk, dv), ring.ahead - ring.turns)
    dk, dv = (jnp.moveaxis(g, 1, 2)[:, :M].astype(x.dtype) for g, x in ((dk, k), (dv, v)))
    return chunked.rows_of(dq.astype(q.dtype), L), dk, dv


def _merged(out: jax.Array, lse: jax.Array, more: jax.Array, more_lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over some keys, and over others, as that over all of them."""
    high = jnp.maximum(lse, more_lse)
    share, more_share = jnp.exp(lse - high), jnp.exp(more_lse - high)
    total = share + more_share
    return (out * share[..., None] + more * more_share[..., None]) / total[..., None], high + jnp.log(total)


def _summed(out: jax.Array, lse: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """The same over the keys of all devices along `axes`."""
    high = jax.lax.pmax(lse, axes)
    share = jnp.exp(lse - high)
    total = jax.lax.psum(share, axes)
    return jax.lax.psum(out * share[..., None], axes) / total[..., None], high + jnp.log(total)
