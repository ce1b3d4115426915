"""Losses as (sum, weight) in float32: they add over rows, micro-batches and hosts, and are divided once.

What does not count (weight 0, an ignored label) adds exactly 0 to the loss and to every gradient, even where its
logits are not finite.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxft.labels import NO_LABEL

Sum = tuple[jax.Array, jax.Array]


def softmax_cross_entropy(
    logits_C: jax.Array, labels: jax.Array, weights: jax.Array, smoothing: float = 0.0, ignore: int = NO_LABEL
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of logits [..., C] against integer labels [...], with weights [...].

    Labels equal to `ignore` or outside [0, C) do not count; they never wrap around, as indexing would. `smoothing`
    moves that share of the target evenly over all C classes (Szegedy et al. 2016; as in torch.nn.CrossEntropyLoss).
    """
    classes = logits_C.shape[-1]
    counts = (labels >= 0) & (labels < classes) & (labels != ignore) & (weights > 0)
    logits_C = jnp.where(counts[..., None], logits_C.astype(jnp.float32), 0)
    # A comparison instead of a gather: nothing wraps, and classes may be sharded.
    is_label_C = jax.lax.broadcasted_iota(jnp.int32, logits_C.shape, logits_C.ndim - 1) == labels[..., None]
    target = jnp.where(is_label_C, logits_C, 0).sum(-1)
    if smoothing:  # a branch, since the mean of logits with a -inf among them would turn 0 * mean into NaN
        target = (1 - smoothing) * target + smoothing * logits_C.mean(-1)
    return _weighted(jax.nn.logsumexp(logits_C, axis=-1) - target, counts, weights)


def sigmoid_binary_cross_entropy(
    logits_C: jax.Array, labels_C: jax.Array, weights: jax.Array, smoothing: float = 0.0, ignore: int = NO_LABEL
) -> tuple[jax.Array, jax.Array]:
    """Mean over C of the binary cross-entropies of logits [..., C] against labels [..., C] in [0, 1]; weights [...].

    A label equal to `ignore` leaves its element out of sum and weight, so that sum / weight is the mean over the
    elements that count (torch.nn.BCEWithLogitsLoss). `smoothing` moves labels towards 1/2.
    """
    counts_C = (labels_C != ignore) & (weights > 0)[..., None]
    logits_C = jnp.where(counts_C, logits_C.astype(jnp.float32), 0)
    target_C = labels_C.astype(jnp.float32) * (1 - smoothing) + 0.5 * smoothing
    # -log sigmoid(x) = softplus(-x): finite for every finite logit.
    loss_C = target_C * jax.nn.softplus(-logits_C) + (1 - target_C) * jax.nn.softplus(logits_C)
    weights_C = jnp.broadcast_to(weights[..., None] / logits_C.shape[-1], logits_C.shape)
    return _weighted(loss_C, counts_C, weights_C)


def squared_error(predictions: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared difference of predictions [...] and targets [...], with weights [...] (torch.nn.MSELoss)."""
    counts = weights > 0
    difference = jnp.where(counts, predictions.astype(jnp.float32) - targets.astype(jnp.float32), 0)
    return _weighted(jnp.square(difference), counts, weights)


def combined(sums: Mapping[str, Sum], shares: Mapping[str, float], weights: Mapping[str, jax.Array]) -> Sum:
    """(sum, weight) of a loss that is made of several means, each times its share; it counts as often as the first.

    `weights` are those of the whole batch: where `sums` are of a micro-batch, what all of them give adds up to the loss
    of the batch, whose parts each are divided once, and not by what a micro-batch happens to hold.
    """
    first = next(iter(shares))
    parts = [share * sums[name][0] * weights[first] / jnp.maximum(weights[name], 1) for name, share in shares.items()]
    return jnp.stack(parts).sum(), sums[first][1]


def _weighted(loss: jax.Array, counts: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = jnp.where(counts, weights.astype(jnp.float32), 0)
    return (jnp.where(counts, loss, 0) * weights).sum(), weights.sum()
