"""Losses that prefer one response to another, of log-probabilities in nats; float32, one number a pair or a response.

`policy` is what the model in training gives a response, `reference` what it gave it before training began.
"""

import jax
import jax.numpy as jnp


def dpo(margin: jax.Array, *, beta: float, smoothing: float) -> jax.Array:
    """Of margins, chosen minus rejected, of log(policy / reference): -log sigmoid(beta x margin).

    `smoothing` is the probability that a pair is the wrong way round. Source: Rafailov et al. 2023, eq. 7; Mitchell
    2023 for the smoothing (conservative DPO).
    """
    right, wrong = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
    return -(1 - smoothing) * right - smoothing * wrong


def ipo(margin: jax.Array, *, beta: float) -> jax.Array:
    """(margin - 1 / (2 beta))^2. Source: Azar et al. 2023, eq. 17, whose tau is beta.

    The margins are of logarithms averaged over the tokens of a response, as in trl.
    """
    return jnp.square(margin - 1 / (2 * beta))


def orpo(chosen: jax.Array, rejected: jax.Array, *, beta: float) -> jax.Array:
    """Of averaged log-probabilities: that of the chosen response, and beta times the logarithm of the odds ratio.

    There is no reference. Source: Hong et al. 2024, eq. 6 and 7, whose lambda is beta.
    """

    def log_odds(logarithm: jax.Array) -> jax.Array:
        below = jnp.minimum(logarithm, -1e-7)  # of a response that is certain the odds are infinite
        return below - jnp.log(-jnp.expm1(below))

    return -chosen - beta * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def kto(ratio: jax.Array, baseline: jax.Array, good: jax.Array, *, beta: float) -> jax.Array:
    """Of log(policy / reference) of single responses, which are `good` or not.

    `baseline` estimates the divergence of the policy from the reference, and gets no gradient.
    Source: Ethayarajh et al. 2024, eq. 8, without the weights.
    """
    away = ratio - jax.lax.stop_gradient(baseline)
    return jax.nn.sigmoid(beta * jnp.where(good, -away, away))


def kto_baseline(ratio: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean of log(policy / reference) over responses to other prompts where `counts`, at least 0."""
    total = jnp.where(counts, ratio, 0.0).sum()
    return jnp.maximum(total / jnp.maximum(counts.sum(), 1), 0.0)
