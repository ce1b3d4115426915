"""Logits over a vocabulary, which are not computed before it is known what of them is wanted.

They are the largest array of a language model by far. What is made of them is made for some tokens at a time, gradients
included, so that no more than a piece of them is ever held (layers/pieces.py).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.labels import NO_LABEL
from jaxft.layers import pieces
from jaxft.layers.draw import drawn
from jaxft.sharding import constrain

Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class VocabLogits:
    """cap * tanh((x table^T + bias) / cap), the first `vocab` of each token; without the cap where `softcap` is 0."""

    x_BLD: jax.Array
    table_VD: jax.Array
    bias_V: jax.Array | None
    softcap: float
    vocab: int  # rows of the table beyond that fill it up and name no word

    def array(self) -> jax.Array:
        """All of them, float32 [B, L, vocab]."""
        table_VD = pieces.whole_rows(self.table_VD, self.x_BLD.dtype)
        return constrain(pieces.logits(self.x_BLD, table_VD, self.bias_V, self.softcap), "BLV")[..., : self.vocab]

    def sample(self, key: jax.Array) -> jax.Array:
        """A word for each token, drawn by its probability, int32 [B, L]. No gradient goes through the choice.

        One number each decides, where the sum of probabilities passes it: what is drawn depends neither on the pieces
        nor on the mesh, and costs nothing beside the logits, as noise for every word would.
        """
        x_BLD, table_VD, bias_V = jax.lax.stop_gradient((self.x_BLD, self.table_VD, self.bias_V))
        table_VD = pieces.whole_rows(table_VD, x_BLD.dtype)
        point_BL = jax.random.uniform(key, x_BLD.shape[:2])

        def draw(_: None, piece: Any) -> tuple[None, jax.Array]:
            x, point = piece
            logits_BLV = constrain(pieces.logits(x, table_VD, bias_V, self.softcap), "BLV")
            word_V = jax.lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 2)
            return None, drawn(jnp.where(word_V < self.vocab, logits_BLV, -jnp.inf), point)

        _, drawn_NBL = jax.lax.scan(draw, None, pieces.cut(table_VD.shape[0], x_BLD, point_BL))
        return pieces.joined(drawn_NBL, x_BLD.shape[1])

    def cross_entropy(
        self, labels_BL: jax.Array, weights_BL: jax.Array, *, smoothing: float = 0.0, z: float = 0.0
    ) -> Sums:
        """Sums and weights: "loss", the cross-entropy as layers.loss has it, and "accuracy".

        Labels outside [0, vocab) do not count. `z` > 0 adds z * logsumexp(logits)^2 to each token's loss (Chowdhery et
        al. 2022, section 5).
        """
        how = _CrossEntropy(self.softcap, self.vocab, smoothing, z)
        weights_BL = self._counting(labels_BL, weights_BL)
        summed: Any = pieces.summed(how, self.x_BLD, self.table_VD, self.bias_V, weights_BL, labels_BL, ())
        (loss, hits), weight = summed, weights_BL.sum()
        return {"loss": (loss, weight), "accuracy": (hits, weight)}

    def _counting(self, labels_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
        """The weights, 0 where the label is no word."""
        counts_BL = (labels_BL >= 0) & (labels_BL < self.vocab) & (labels_BL != NO_LABEL) & (weights_BL > 0)
        return jnp.where(counts_BL, weights_BL.astype(jnp.float32), 0)

    def log_probabilities(self, labels_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
        """The logarithm of the probability of each label by its weight, float32 [B, L]; labels as for cross_entropy.

        Of their gradients, too, no more than a piece's logits are held: the backward pass computes them again.
        """
        how = _CrossEntropy(self.softcap, self.vocab, 0.0, 0.0)

        def of(piece: Any) -> jax.Array:
            x, labels, weights = piece
            # Made less precise in here, so that the table's gradients add up in its own dtype.
            words_VD = table_VD.astype(x.dtype)
            return -pieces.losses(how, x, words_VD, self.bias_V, weights, labels, ())[0]

        table_VD = pieces.whole_rows(self.table_VD, self.table_VD.dtype)
        logs_NBL = jax.lax.map(
            jax.checkpoint(of),
            pieces.cut(table_VD.shape[0], self.x_BLD, labels_BL, self._counting(labels_BL, weights_BL)),
        )
        return pieces.joined(logs_NBL, labels_BL.shape[1])

    def divergence(self, teacher: "VocabLogits", weights_BL: jax.Array, temperature: float) -> Sums:
        """Sums and weights: "loss", as layers.distance.divergence has it, and "agreement" on the likeliest word.

        It is over the words that both have: what one has beyond fills up its table. No gradient goes to the teacher.
        """
        words = min(self.vocab, teacher.vocab)
        how = _Divergence(self.softcap, words, teacher.softcap, temperature)
        weights_BL = weights_BL.astype(jnp.float32)
        theirs = (pieces.whole_rows(teacher.table_VD, teacher.x_BLD.dtype), teacher.bias_V)
        given_BLD = jnp.where((weights_BL > 0)[..., None], teacher.x_BLD, 0)  # what has no weight leaves no trace
        summed: Any = pieces.summed(how, self.x_BLD, self.table_VD, self.bias_V, weights_BL, given_BLD, theirs)
        (loss, hits), weight = summed, weights_BL.sum()
        return {"loss": (loss, weight), "agreement": (hits, weight)}


@dataclass(frozen=True)
class _CrossEntropy:
    """How pieces.summed makes a loss: (loss, hit) of each token of a piece, from its logits and labels."""

    softcap: float
    vocab: int
    smoothing: float
    z: float

    def __call__(self, logits_BLV: jax.Array, labels_BL: jax.Array, more: Any) -> tuple[jax.Array, jax.Array]:
        word_V = jax.lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 2)
        inside = jnp.where(word_V < self.vocab, logits_BLV, -jnp.inf)
        # A comparison instead of a gather: the words may be shared out over devices.
        target_BL = jnp.where(word_V == labels_BL[..., None], logits_BLV, 0).sum(-1)
        hits_BL = target_BL >= inside.max(-1)
        logsumexp_BL = jax.nn.logsumexp(inside, axis=-1)
        if self.smoothing:
            mean_BL = jnp.where(word_V < self.vocab, logits_BLV, 0).sum(-1) / self.vocab
            target_BL = (1 - self.smoothing) * target_BL + self.smoothing * mean_BL
        return logsumexp_BL - target_BL + self.z * jnp.square(logsumexp_BL), hits_BL


@dataclass(frozen=True)
class _Divergence:
    """The same from the student's logits and the teacher's vectors; `more` is the teacher's (table, bias)."""

    softcap: float
    vocab: int
    teacher_softcap: float
    temperature: float

    def __call__(self, logits_BLV: jax.Array, teacher_BLD: jax.Array, more: Any) -> tuple[jax.Array, jax.Array]:
        table_VD, bias_V = more
        theirs_BLV = constrain(pieces.logits(teacher_BLD, table_VD, bias_V, self.teacher_softcap), "BLV")
        ours, theirs = (logits[..., : self.vocab] for logits in (logits_BLV, theirs_BLV))
        hits_BL = ours.argmax(-1) == theirs.argmax(-1)
        ours, theirs = (jax.nn.log_softmax(logits / self.temperature) for logits in (ours, theirs))
        return self.temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(-1), hits_BL
