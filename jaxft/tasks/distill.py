"""Knowledge distillation: a task that is learned from its labels and from a teacher that has learned it."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxft.layers import distance, projection
from jaxft.layers.loss import squared_error
from jaxft.layers.shown import showing
from jaxft.layers.vocab import VocabLogits
from jaxft.registry import UserError, call, check_name
from jaxft.tasks import TASKS, Companion, labels
from jaxft.tasks.text import Splits

TEACHER, PROJECTION = "teacher", "projection"
Sums = dict[str, tuple[jax.Array, jax.Array]]

# Task -> what its logits are, which says how two of them are compared.
KINDS = {
    **dict.fromkeys(("cls", "pair", "token_cls"), "classes"),
    **dict.fromkeys(("masked_lm", "causal_lm", "span_corruption", "chat"), "words"),
    "multilabel": "labels",
    "regression": "number",
}
MATCHES = {"mse": distance.squared, "cosine": distance.cosine}


class Lesson(NamedTuple):
    """Logits of both, and how far their layers are apart (None: not asked)."""

    student: Any
    teacher: Any
    hidden: tuple[jax.Array, jax.Array] | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Distill:
    """of: section of the task. teacher: hub id or folder of a model of any family with its head and the same tokenizer.

    The loss is (1 - alpha) * that of the task + alpha * T^2 * KL(teacher || student) of logits / T, T the `temperature`
    (Hinton et al. 2015; of a regression the squared difference of the numbers), + hidden * the distance of `layers`.
    These are pairs "student's:teacher's", 0 being the embeddings and n what follows the n-th block; `match` is "mse"
    (Jiao et al. 2020, with a learned projection where widths differ) or "cosine" (Sanh et al. 2019), summed over pairs.
    An evaluation scores the student alone by the task's own loss. classes: see the task. A teacher whose config.json
    does not name its classes is taken to have them in the order of the data, whatever that of the student.
    """

    of: dict
    teacher: str
    temperature: float
    alpha: float
    hidden: float
    match: str
    layers: tuple
    classes: tuple[str, ...] = ()

    field: ClassVar[str] = "task.teacher"
    within: ClassVar[str] = "of"

    def __post_init__(self) -> None:
        if "name" not in self.of:
            raise UserError("task.of is the section of the task that is distilled: dict(name='cls', ...)")
        check_name(KINDS, self.of["name"], "task.of.name")
        if not self.teacher:
            raise UserError(f"{self.field}='' must name a hub id or a folder, such as runs/bert_cls/hf")
        if not self.temperature > 0:
            raise UserError(f"task.temperature={self.temperature} must be above 0; 1 to 5 are common")
        if not 0 <= self.alpha <= 1 or self.hidden < 0:
            raise UserError(f"task.alpha={self.alpha} must be 0 to 1 and task.hidden={self.hidden} 0 or more")
        if not self.alpha and not self.hidden:
            raise UserError("task.alpha=0 and task.hidden=0: nothing is learned from the teacher; raise one of them")
        if self.match not in MATCHES:
            raise UserError(f"task.match={self.match!r} is not known; known: {', '.join(MATCHES)}")
        if bool(self.hidden) != bool(self.pairs):
            raise UserError(f"task.hidden={self.hidden}, task.layers={tuple(self.layers)}: set both, or 0 and ()")
        assert self.task is not None  # its options are checked

    @functools.cached_property
    def task(self) -> Any:
        """The task itself, fitted where this one is."""
        return call(TASKS, self.of | ({"classes": self.classes} if self.classes else {}), "task.of")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        """What is read of a row depends on this alone (token caches)."""
        return repr(self.task)

    @functools.cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The layers of both that are compared."""
        found = [text.partition(":") for text in self.layers]
        for text, (ours, _, theirs) in zip(self.layers, found, strict=True):
            if not (ours.isdecimal() and theirs.isdecimal()):
                raise UserError(f"task.layers: {text!r} is no pair; write them as in ('1:4', '2:8')")
        return tuple((int(ours), int(theirs)) for ours, _, theirs in found)

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """With the classes of the data, where the task has some. Raises UserError as the task does.

        `classes` may be put into the order of the student's checkpoint later; `of` keeps that of the data.
        """
        classes = getattr(self.task.fit(splits, label_names), "classes", ())
        of = self.of | ({"classes": classes} if classes else {})
        return dataclasses.replace(self, of=of, classes=classes)

    # ---- the networks: companions.py ----

    @property
    def companions(self) -> dict[str, Companion]:
        task = self.task
        teacher = Companion(self.teacher, self.field, task.head, task.outputs, False, read=task.read)
        if not self.hidden:
            return {TEACHER: teacher}
        return {TEACHER: teacher, PROJECTION: Companion("", "task.layers", "", 0, True)}

    def declare(self, name: str, net: Any) -> tuple[Any, Any] | None:
        narrow, wide = net.cfg.d_model, net.companions[TEACHER].net.cfg.d_model
        return None if narrow == wide else (projection, projection.Config(len(self.pairs), narrow, wide))

    def check_companions(self, net: Any) -> None:
        """Raises UserError for a teacher of other classes, and for layers that one of both does not have."""
        teacher = net.companions[TEACHER]
        problem = self.task.hf_config().get("problem_type")
        if problem and teacher.hf.get("problem_type", problem) != problem:
            raise UserError(
                f"{self.field}={self.teacher!r} does {teacher.hf['problem_type']}, the task {problem}; take another one"
            )
        if self.classes and set(theirs := self._order(teacher)) != set(self.classes):
            raise UserError(
                f"{self.field}={self.teacher!r} has the classes {', '.join(theirs)}, the data "
                f"{', '.join(self.classes)}; take a teacher of the same classes"
            )
        for one, of, side in ((net, "the model", 0), (teacher.net, "the teacher", 1)):
            if self.pairs and (one.family.KIND not in ("encoder", "decoder") or one.how.scan):
                raise UserError(
                    f"task.layers: the layers of {of} cannot be looked at: it must be an encoder or a decoder, and "
                    "model.scan=False"
                )
            if self.pairs and one.declared.virtual.inserted:
                raise UserError(
                    f"task.layers: {of} has a prompt before its texts (peft.name='prompt'), and layers are compared "
                    "token by token; choose another method"
                )
            if wrong := [pair[side] for pair in self.pairs if pair[side] > one.cfg.layers]:
                raise UserError(f"task.layers: {of} has layers 0 (embeddings) to {one.cfg.layers}, and no {wrong[0]}")

    def assumed(self, net: Any) -> list[str]:
        """What is taken for granted of the teacher."""
        if not self.classes or self._names(net.companions[TEACHER]):
            return []
        return [f"{TEACHER}: no names of classes; they are taken to be in the data's order: {', '.join(self._data)}"]

    def _names(self, teacher: Any) -> tuple[str, ...]:
        """The teacher's classes by its outputs, () where it has no names for them."""
        names = labels.from_hf(teacher.hf) if teacher.hf.get("id2label") else ()
        nameless = all(name.startswith("LABEL_") for name in names) and len(names) == len(self.classes)
        return () if nameless else names

    @property
    def _data(self) -> tuple[str, ...]:
        """The classes in the order of the data."""
        return tuple(self.of["classes"])

    def _order(self, teacher: Any) -> tuple[str, ...]:
        """The teacher's classes by its outputs. One that has no names for them is taken to have the data's order."""
        return self._names(teacher) or self._data

    def forward(self, net: Any, params: Any, given: Any, batch: Mapping[str, jax.Array], key: Any) -> tuple[Any, Any]:
        """(Lesson, losses of the student's own); in an evaluation (its logits, losses), which needs no teacher."""
        if not given:
            return net.forward_with_losses(params, batch, key)
        teacher = net.companions[TEACHER]
        looking = showing if self.hidden else contextlib.nullcontext
        with looking() as theirs:
            answers, _ = teacher.net.forward_with_losses(given[TEACHER], batch, None)
        with looking() as ours:
            logits, losses = net.forward_with_losses(params, batch, key)
        if self.classes and (names := self._order(teacher)) != self.classes:
            answers = jnp.take(answers, jnp.array([names.index(name) for name in self.classes]), axis=-1)
        kernels = params[PROJECTION]["kernel"] if PROJECTION in net.companions else None
        hidden = self._distance(ours, theirs, kernels, batch) if ours and theirs else None
        return Lesson(logits, answers, hidden), losses

    def _distance(self, ours: Any, theirs: Any, kernels: Any, batch: Mapping[str, jax.Array]) -> Any:
        """Over the tokens of all texts, summed over pairs of layers."""
        real_BL = _real(batch)
        total, weight = jnp.zeros((), jnp.float32), real_BL.sum()
        for i, (one, other) in enumerate(self.pairs):
            x_BLD = ours[one] if kernels is None else projection.project(kernels[i], ours[one])
            total += MATCHES[self.match](x_BLD, theirs[other], real_BL)[0]
        return total, weight

    # ---- the loss ----

    @property
    def shares(self) -> dict[str, float]:
        hidden = {"hidden_loss": self.hidden} if self.hidden else {}
        return {"hard_loss": 1 - self.alpha, "soft_loss": self.alpha} | hidden

    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        labelled, tokens = batch["weight"].sum(), _real(batch).sum()
        return {"hard_loss": labelled, "soft_loss": labelled, "hidden_loss": tokens}

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> Sums:
        """The task's sums; where a teacher was asked hard_loss instead of "loss", soft_loss and hidden_loss."""
        if not isinstance(logits, Lesson):
            return self.task.loss(logits, batch)
        sums = self.task.loss(logits.student, batch)
        sums["hard_loss"] = sums.pop("loss")
        sums["soft_loss"] = self._soft(logits.student, logits.teacher, batch["weight"])
        return sums if logits.hidden is None else sums | {"hidden_loss": logits.hidden}

    def _soft(self, student: Any, teacher: Any, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        kind, T = KINDS[self.of["name"]], self.temperature
        if kind == "words":
            assert isinstance(student, VocabLogits)
            return student.divergence(teacher, weights, T)["loss"]
        if kind == "number":
            return squared_error(student[..., 0], jax.lax.stop_gradient(teacher[..., 0]), weights)
        compare = distance.divergence if kind == "classes" else distance.binary_divergence
        return compare(student, teacher, weights, T)


def _real(batch: Mapping[str, jax.Array]) -> jax.Array:
    """1 where there is a token, [B, L]."""
    return (batch["segment"] > 0).astype(jnp.float32)
