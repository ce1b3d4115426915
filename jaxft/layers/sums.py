"""Sums over rows, which gradients of parameters are made of, each in the way that suits the device.

XLA splits a long sum into windows on CPUs, which takes up to 30 times as long as the same sum as a product with ones:
a fifth of the step of a small BERT (docs/log.md). On GPUs and TPUs its own reductions are the fast ones.
"""

import jax
import jax.numpy as jnp


def column_sum(x_D: jax.Array) -> jax.Array:
    """The sum of [..., D] over all axes but the last, [D], in float32."""

    def product(x_D: jax.Array) -> jax.Array:
        x_XD = x_D.astype(jnp.float32).reshape(-1, x_D.shape[-1])
        return jnp.ones(x_XD.shape[0], jnp.float32) @ x_XD

    def reduction(x_D: jax.Array) -> jax.Array:
        return x_D.sum(tuple(range(x_D.ndim - 1)), dtype=jnp.float32)

    return jax.lax.platform_dependent(x_D, cpu=product, default=reduction)


def outer_sum(x_I: jax.Array, y_O: jax.Array) -> jax.Array:
    """The sum over all other axes of the outer products of [..., I] and [..., O], [I, O]: a kernel's gradient."""

    def flattened(x_I: jax.Array, y_O: jax.Array) -> jax.Array:
        # A CPU product over one axis reads both factors as they lie; over two axes it first copies one transposed.
        x_XI, y_XO = x_I.reshape(-1, x_I.shape[-1]), y_O.reshape(-1, y_O.shape[-1])
        if x_XI.shape[1] <= y_XO.shape[1]:
            return x_XI.T @ y_XO
        # The factor that is transposed should be the narrow one: 8 times as fast where it has 8 columns of 1,536. The
        # barrier keeps XLA from turning the product around again.
        return jax.lax.optimization_barrier(y_XO.T @ x_XI).T

    def whole(x_I: jax.Array, y_O: jax.Array) -> jax.Array:
        return jnp.einsum("...i,...o->io", x_I, y_O)

    return jax.lax.platform_dependent(x_I, y_O, cpu=flattened, default=whole)
