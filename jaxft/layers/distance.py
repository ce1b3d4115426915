"""How far a student is from its teacher, as (sum, weight) in float32: see loss.py for what does not count."""

import jax
import jax.numpy as jnp

Sum = tuple[jax.Array, jax.Array]
TINY = 1e-8  # added to squared lengths, so that a vector of zeros has a gradient


def divergence(student_C: jax.Array, teacher_C: jax.Array, weights: jax.Array, temperature: float) -> Sum:
    """T^2 KL(teacher || student) of softmax(logits / T), logits [..., C], weights [...] (Hinton et al. 2015).

    T^2 keeps the size of the gradients as the temperature changes.
    """
    ours_C, theirs_C = (_counted(logits, weights) / temperature for logits in (student_C, teacher_C))
    ours_C, theirs_C = jax.nn.log_softmax(ours_C), jax.nn.log_softmax(jax.lax.stop_gradient(theirs_C))
    return _sum(temperature**2 * (jnp.exp(theirs_C) * (theirs_C - ours_C)).sum(-1), weights)


def binary_divergence(student_C: jax.Array, teacher_C: jax.Array, weights: jax.Array, temperature: float) -> Sum:
    """The same of C labels that are there or not, sigmoid(logits / T), in the mean over C."""
    ours_C, theirs_C = (_counted(logits, weights) / temperature for logits in (student_C, teacher_C))
    theirs_C = jax.lax.stop_gradient(theirs_C)
    there_C = jax.nn.log_sigmoid(theirs_C) - jax.nn.log_sigmoid(ours_C)
    absent_C = jax.nn.log_sigmoid(-theirs_C) - jax.nn.log_sigmoid(-ours_C)
    p_C = jax.nn.sigmoid(theirs_C)
    return _sum(temperature**2 * (p_C * there_C + (1 - p_C) * absent_C).mean(-1), weights)


def squared(x_D: jax.Array, y_D: jax.Array, weights: jax.Array) -> Sum:
    """Squared difference of vectors [..., D] in the mean over D, weights [...] (Jiao et al. 2020)."""
    difference_D = _counted(x_D, weights) - _counted(jax.lax.stop_gradient(y_D), weights)
    return _sum(jnp.square(difference_D).mean(-1), weights)


def cosine(x_D: jax.Array, y_D: jax.Array, weights: jax.Array) -> Sum:
    """1 - cosine of the angle of vectors [..., D], weights [...] (Sanh et al. 2019)."""
    x_D, y_D = _counted(x_D, weights), _counted(jax.lax.stop_gradient(y_D), weights)
    lengths = jnp.sqrt((jnp.square(x_D).sum(-1) + TINY) * (jnp.square(y_D).sum(-1) + TINY))
    return _sum(1 - (x_D * y_D).sum(-1) / lengths, weights)


def _counted(x_D: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` in float32, 0 where it does not count: so nothing comes of it, even where it is not finite."""
    return jnp.where((weights > 0)[..., None], x_D.astype(jnp.float32), 0)


def _sum(loss: jax.Array, weights: jax.Array) -> Sum:
    weights = weights.astype(jnp.float32)
    return (loss * weights).sum(), weights.sum()
