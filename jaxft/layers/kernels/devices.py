"""A kernel that XLA cannot divide among devices runs on each device's own rows and heads."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft import sharding

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def per_device(kernel: Kernel, q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, where: "Where") -> jax.Array:
    """`kernel(q, k, v, segment of queries, segment of keys)` by the activation rules of B and H; rows are whole."""
    active = sharding.active()
    if active is None or active.mesh.size == 1:
        return kernel(q_BLHK, k_BMGK, v_BMGK, where.query_BL, where.key_BM)
    spec, k_BMGK, v_BMGK = shared_out(active, q_BLHK, k_BMGK, v_BMGK)
    rows = P(spec[0], None)
    # Manual over all axes: check_vma asks for annotations that the kernels do not have.
    mapped = jax.shard_map(
        kernel, mesh=active.mesh, in_specs=(spec, spec, spec, rows, rows), out_specs=spec, check_vma=False
    )
    return mapped(q_BLHK, k_BMGK, v_BMGK, where.query_BL, where.key_BM)


def shared_out(
    active: sharding.Active, q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array
) -> tuple[P, jax.Array, jax.Array]:
    """How the activation rules of B and H share out queries, and keys and values that can be shared out alike.

    Where there are fewer key heads than devices to share the heads, a key head is repeated, as often as it takes.
    """
    rules = {letter: active.rules[letter] for letter in ("B", "H") if letter in active.rules}
    spec = sharding.spec(q_BLHK.shape, "BLHK", rules, active.mesh)
    pieces = q_BLHK.shape[2] // NamedSharding(active.mesh, spec).shard_shape(q_BLHK.shape)[2]
    repeats = pieces // math.gcd(pieces, k_BMGK.shape[2])
    k_BMGK, v_BMGK = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (k_BMGK, v_BMGK))
    return spec, k_BMGK, v_BMGK
