"""Logits over a vocabulary, which are not computed before it is known what of them is wanted.

They are the largest array of a language model by far. Their cross-entropy is computed for some tokens at a time,
gradients included, so that no more than a piece of them is ever held.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft import sharding
from jaxft.layers.loss import IGNORE
from jaxft.layers.sums import outer_sum
from jaxft.sharding import constrain

PIECE = 2**23  # logits that one device holds at a time: 32 MB of float32

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
        table_VD = _whole_rows(self.table_VD, self.x_BLD.dtype)
        return constrain(_logits(self.x_BLD, table_VD, self.bias_V, self.softcap), "BLV")[..., : self.vocab]

    def sample(self, key: jax.Array) -> jax.Array:
        """A word for each token, drawn by its probability, int32 [B, L]. No gradient goes through the choice.

        Each token has a key of its own: what is drawn depends neither on the pieces nor on the mesh.
        """
        x_BLD, table_VD, bias_V = jax.lax.stop_gradient((self.x_BLD, self.table_VD, self.bias_V))
        table_VD = _whole_rows(table_VD, x_BLD.dtype)
        B, L, _ = x_BLD.shape
        bits_BL2 = jax.random.key_data(jax.random.split(key, (B, L)))

        def draw(_: None, piece: Any) -> tuple[None, jax.Array]:
            x, bits = piece
            logits_BLV = constrain(_logits(x, table_VD, bias_V, self.softcap), "BLV")
            word_V = jax.lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 2)
            keys = jax.random.wrap_key_data(bits)
            noise_BLV = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BLV.shape[2:])))(keys)
            return None, jnp.argmax(jnp.where(word_V < self.vocab, logits_BLV + noise_BLV, -jnp.inf), axis=-1)

        _, drawn_NBL = jax.lax.scan(draw, None, _pieces(table_VD.shape[0], x_BLD, bits_BL2))
        return jnp.moveaxis(drawn_NBL, 0, 1).reshape(B, -1)[:, :L].astype(jnp.int32)

    def cross_entropy(
        self, labels_BL: jax.Array, weights_BL: jax.Array, *, smoothing: float = 0.0, z: float = 0.0
    ) -> Sums:
        """Sums and weights: "loss", the cross-entropy as layers.loss has it, and "accuracy".

        Labels outside [0, vocab) do not count. `z` > 0 adds z * logsumexp(logits)^2 to each token's loss (Chowdhery et
        al. 2022, section 5).
        """
        how = _CrossEntropy(self.softcap, self.vocab, smoothing, z)
        weights_BL = self._counting(labels_BL, weights_BL)
        summed: Any = _summed(how, self.x_BLD, self.table_VD, self.bias_V, weights_BL, labels_BL, ())
        (loss, hits), weight = summed, weights_BL.sum()
        return {"loss": (loss, weight), "accuracy": (hits, weight)}

    def _counting(self, labels_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
        """The weights, 0 where the label is no word."""
        counts_BL = (labels_BL >= 0) & (labels_BL < self.vocab) & (labels_BL != IGNORE) & (weights_BL > 0)
        return jnp.where(counts_BL, weights_BL.astype(jnp.float32), 0)

    def log_probabilities(self, labels_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
        """The logarithm of the probability of each label by its weight, float32 [B, L]; labels as for cross_entropy.

        Of their gradients, too, no more than a piece's logits are held: the backward pass computes them again.
        """
        how = _CrossEntropy(self.softcap, self.vocab, 0.0, 0.0)
        B, L = labels_BL.shape

        def of(piece: Any) -> jax.Array:
            x, labels, weights = piece
            # Made less precise in here, so that the table's gradients add up in its own dtype.
            words_VD = table_VD.astype(x.dtype)
            return -_losses(how, x, words_VD, self.bias_V, weights, labels, ())[0]

        table_VD = _whole_rows(self.table_VD, self.table_VD.dtype)
        logs_NBL = jax.lax.map(
            jax.checkpoint(of),
            _pieces(table_VD.shape[0], self.x_BLD, labels_BL, self._counting(labels_BL, weights_BL)),
        )
        return jnp.moveaxis(logs_NBL, 0, 1).reshape(B, -1)[:, :L]

    def divergence(self, teacher: "VocabLogits", weights_BL: jax.Array, temperature: float) -> Sums:
        """Sums and weights: "loss", as layers.distance.divergence has it, and "agreement" on the likeliest word.

        It is over the words that both have: what one has beyond fills up its table. No gradient goes to the teacher.
        """
        words = min(self.vocab, teacher.vocab)
        how = _Divergence(self.softcap, words, teacher.softcap, temperature)
        weights_BL = weights_BL.astype(jnp.float32)
        theirs = (_whole_rows(teacher.table_VD, teacher.x_BLD.dtype), teacher.bias_V)
        given_BLD = jnp.where((weights_BL > 0)[..., None], teacher.x_BLD, 0)  # what has no weight leaves no trace
        summed: Any = _summed(how, self.x_BLD, self.table_VD, self.bias_V, weights_BL, given_BLD, theirs)
        (loss, hits), weight = summed, weights_BL.sum()
        return {"loss": (loss, weight), "agreement": (hits, weight)}


@dataclass(frozen=True)
class _CrossEntropy:
    """Constants of the program, and (loss, hit) of each token of a piece from its logits and labels."""

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
        theirs_BLV = constrain(_logits(teacher_BLD, table_VD, bias_V, self.teacher_softcap), "BLV")
        ours, theirs = (logits[..., : self.vocab] for logits in (logits_BLV, theirs_BLV))
        hits_BL = ours.argmax(-1) == theirs.argmax(-1)
        ours, theirs = (jax.nn.log_softmax(logits / self.temperature) for logits in (ours, theirs))
        return self.temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(-1), hits_BL


def _logits(x_BLD: jax.Array, table_VD: jax.Array, bias_V: jax.Array | None, softcap: float) -> jax.Array:
    logits_BLV = _product(x_BLD, table_VD)
    if bias_V is not None:
        logits_BLV += bias_V.astype(jnp.float32).reshape(1, 1, -1)
    return softcap * jnp.tanh(logits_BLV / softcap) if softcap else logits_BLV


def _whole_rows(table_VD: jax.Array, dtype: Any) -> jax.Array:
    """Gathered where their columns are shared out, once for all pieces."""
    return constrain(table_VD.astype(dtype), "V_")


@jax.custom_vjp
def _product(x_BLD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """x table^T in float32, of factors in less; their gradients are products of factors in less again."""
    return jnp.matmul(x_BLD, table_VD.T, preferred_element_type=jnp.float32)


def _product_forward(x_BLD: jax.Array, table_VD: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x_BLD, table_VD), (x_BLD, table_VD)


def _product_backward(saved: Any, g_BLV: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BLD, table_VD = saved
    g_BLV = g_BLV.astype(x_BLD.dtype)
    return g_BLV @ table_VD, outer_sum(g_BLV, x_BLD).astype(table_VD.dtype)


_product.defvjp(_product_forward, _product_backward)


def _losses(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> tuple[jax.Array, jax.Array]:
    """(loss, hits) of each token of a piece by its weight; what has none adds 0 to every gradient."""
    x_BLD = jnp.where((weights_BL > 0)[..., None], x_BLD, 0)
    logits_BLV = constrain(_logits(x_BLD, table_VD, bias_V, how.softcap), "BLV")
    loss_BL, hits_BL = how(logits_BLV, aim, more)
    return loss_BL * weights_BL, jax.lax.stop_gradient(hits_BL * weights_BL)


def _loss(how: Any, *piece: Any) -> tuple[jax.Array, jax.Array]:
    """(summed loss, summed hits) of a piece."""
    loss_BL, hits_BL = _losses(how, *piece)
    return loss_BL.sum(), hits_BL.sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> Any:
    """(summed loss, summed hits): `_loss` of the whole, piece by piece along L.

    `aim` [B, L, ...] is what each token's loss is made with, `more` what that of all is. The gradients of a piece are
    computed with its loss, while its logits are there; the backward pass only multiplies them by that of the sum.
    """
    table_VD = _whole_rows(table_VD, x_BLD.dtype)

    def add(total: Any, piece: Any) -> tuple[Any, None]:
        x, weights, aim = piece
        return jax.tree.map(jnp.add, total, _loss(how, x, table_VD, bias_V, weights, aim, more)), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _pieces(_words(table_VD, more), x_BLD, weights_BL, aim))[0]


def _words(table_VD: jax.Array, more: Any) -> int:
    """Logits of a token that are there at a time: of the table, and of the teacher's."""
    return table_VD.shape[0] + (more[0].shape[0] if more else 0)


def _summed_forward(
    how: Any,
    x_BLD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    weights_BL: jax.Array,
    aim: Any,
    more: Any,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    words_VD = _whole_rows(table_VD, x_BLD.dtype)

    def add(total: Any, piece: Any) -> tuple[Any, jax.Array]:
        x, weights, aim = piece
        loss, pull, hits = jax.vjp(
            lambda x, words, bias: _loss(how, x, words, bias, weights, aim, more), x, words_VD, bias_V, has_aux=True
        )
        g_x, g_words, g_bias = pull(jnp.ones_like(loss))
        sums, g_table, g_bias_sum = total
        sums = jax.tree.map(jnp.add, sums, (loss, hits))
        g_bias_sum = jax.tree.map(lambda a, b: a + b.astype(a.dtype), g_bias_sum, g_bias)
        return (sums, g_table + constrain(g_words.astype(jnp.float32), "V_"), g_bias_sum), g_x

    zero = jnp.zeros((), jnp.float32)
    start = (
        (zero, zero),
        constrain(jnp.zeros(table_VD.shape, jnp.float32), "V_"),
        jax.tree.map(lambda bias: jnp.zeros(bias.shape, jnp.float32), bias_V),
    )
    pieces = _pieces(_words(table_VD, more), x_BLD, weights_BL, aim)
    (sums, g_table_VD, g_bias_V), g_NBLD = jax.lax.scan(add, start, pieces)
    g_BLD = jnp.moveaxis(g_NBLD, 0, 1).reshape(x_BLD.shape[0], -1, x_BLD.shape[2])[:, : x_BLD.shape[1]]
    like = jax.tree.map(lambda leaf: jnp.zeros((0,), leaf.dtype), (x_BLD, table_VD, bias_V))
    return sums, ((g_BLD, g_table_VD, g_bias_V), like)


def _summed_backward(how: Any, saved: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    grads, like = saved
    scaled = jax.tree.map(lambda grad, leaf: (grad * given[0].astype(grad.dtype)).astype(leaf.dtype), grads, like)
    return (*scaled, None, None, None)


_summed.defvjp(_summed_forward, _summed_backward)


def _pieces(words: int, *arrays_BL: jax.Array) -> Any:
    """The arrays [B, L, ...] cut along L, [N, B, L / N, ...], filled up by 0.

    `words` are the logits of a token: those of a piece fit.
    """
    B, L = arrays_BL[0].shape[:2]
    active = sharding.active()
    shared = 1 if active is None else sharding.batch_shards(active.mesh, active.rules)
    shared *= 1 if active is None else sharding.pieces("V", active.rules, active.mesh)
    n = min(L, -(-B * L * words // (PIECE * shared)))
    size = -(-L // n)
    n = -(-L // size)

    def cut(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, 0), (0, n * size - L), *[(0, 0)] * (array.ndim - 2)))
        pieces = jnp.moveaxis(padded.reshape(B, n, size, *array.shape[2:]), 1, 0)
        return constrain(pieces, "_BLD"[: pieces.ndim])

    return tuple(map(cut, arrays_BL))
