"""Extractive question answering: the answer to a question is a piece of its context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxft.labels import END, START
from jaxft.layers.head import tokens_of_segments
from jaxft.metrics import squad
from jaxft.metrics.spans import NEVER, Found, SpanMeter
from jaxft.registry import BadRow, UserError, nearest
from jaxft.tasks.answers import answers_of, placed
from jaxft.tasks.classless import Classless
from jaxft.tasks.text import Row, TextTask


class Question(NamedTuple):
    """A row as the token cache and the meter want it."""

    text: str
    pair: str  # the context
    label: list[int] | None  # first character of the answer and past its last, equal without; whether it was moved
    answers: tuple[str, ...]  # all that are right; none: it has no answer, or nothing is labelled


@dataclass(frozen=True, kw_only=True)
class SpanQa(TextTask, Classless):
    """text: the column of questions, pair: of contexts, label: of answers (answers.py). metric: "" = f1.

    stride: tokens of the context that neighbouring windows share. question_length: tokens of a question that are read,
    answer_length: of an answer at most. nbest: answers that are kept of each question.
    unanswerable: questions may have no answer, which is learnt as the window's first token; it is predicted where its
    score is above that of the best answer by more than `threshold`.
    rules: of the scores, "squad" or "cmrc" (metrics/squad.py: words of English, or characters of Chinese).
    """

    stride: int
    question_length: int
    answer_length: int
    nbest: int
    unanswerable: bool
    threshold: float
    rules: str

    reads: ClassVar[str] = "windows"
    head: ClassVar[str] = "span"
    read: ClassVar[float] = 1.0
    outputs: ClassVar[int] = 2  # logits of start and of end
    columns: ClassVar[dict[str, str]] = {"text": "question", "pair": "context", "label": "answers"}
    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match", "loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pair:
            raise UserError("task.pair='' must name the column that holds the contexts")
        for name, least in (("stride", 0), ("question_length", 1), ("answer_length", 1), ("nbest", 1)):
            if getattr(self, name) < least:
                raise UserError(f"task.{name}={getattr(self, name)} must be {least} or more")
        if self.rules not in squad.RULES:
            known = ", ".join(squad.RULES)
            raise UserError(f"task.rules={self.rules!r} is not known; known: {known}{nearest(self.rules, squad.RULES)}")

    def example(self, row: Row, labelled: bool = True) -> Question:
        """Raises BadRow for a question or context that cannot be used, and for answers none of which is in it."""
        question, context = self.texts(row)
        assert context is not None, "task.pair is never empty"
        if not labelled:
            return Question(question, context, None, ())
        answers = answers_of(row, self.label)
        texts = tuple(answer.text for answer in answers)
        if not answers and not self.unanswerable:
            raise BadRow(f"{self.label!r} is empty; --config.task.unanswerable=True takes questions without an answer")
        return Question(question, context, placed(context, answers) if answers else [0, 0, 0], texts)

    def loss(self, logits_BLC: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: of start and end the mean cross-entropy over a window's tokens; "accuracy": both right."""
        inside_BSL, labelled_BL = tokens_of_segments(batch), batch["weight"] > 0
        sides = [
            _choice(logits_BLC[..., i], inside_BSL, labelled_BL & (batch["label"] & bit > 0))
            for i, bit in enumerate((START, END))
        ]
        (start_BS, start_hit_BS, counts_BS), (end_BS, end_hit_BS, _) = sides
        weight = counts_BS.astype(jnp.float32).sum()
        hits = (start_hit_BS & end_hit_BS).astype(jnp.float32).sum()
        return {"loss": ((start_BS + end_BS).sum() / 2, weight), "accuracy": (hits, weight)}

    def seen(self, logits_BLC: jax.Array, batch: Mapping[str, jax.Array], /) -> dict[str, jax.Array]:
        """What the host is given to score: logits, and which characters of which context they are of."""
        return {name: batch[name] for name in ("chars", "segment", "example", "row")} | {"logits": logits_BLC}

    def meter(self) -> SpanMeter:
        return SpanMeter(
            rules=self.rules,
            longest=self.answer_length,
            most=self.nbest,
            nothing=self.unanswerable,
            threshold=self.threshold,
        )

    def predictions(self, logits: Sequence[Found], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What was found of each row -> [{answer, start, end, score, probability, nbest}] (metrics/spans.py)."""
        return [self._prediction(found, self.texts(row)[1] or "") for found, row in zip(logits, rows, strict=True)]

    def _prediction(self, found: Found, context: str) -> dict[str, Any]:
        nbest = found.answers(context, nothing=self.unanswerable)
        said = found.text(context, nothing=self.unanswerable, threshold=self.threshold)
        return {**next(one for one in nbest if one["answer"] == said), "nbest": nbest}

    def hf_config(self) -> dict[str, Any]:
        """transformers has no fields for the options of this task, but a place for those of any."""
        shared = {field.name for field in fields(TextTask)}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in shared}
        return {"task_specific_params": {"span_qa": own}}

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        text: str,
        pair: str,
        label: str,
        stride: int = 128,
        question_length: int = 64,
        answer_length: int = 30,
        nbest: int = 20,
        unanswerable: bool = False,
        threshold: float = 0.0,
        rules: str = "squad",
    ) -> Self:
        """The task with these options; the defaults are what is usual where another program wrote config.json."""
        return cls(
            text=text,
            pair=pair,
            label=label,
            metric="",
            stride=stride,
            question_length=question_length,
            answer_length=answer_length,
            nbest=nbest,
            unanswerable=unanswerable,
            threshold=threshold,
            rules=rules,
        )


def _choice(logits_BL: jax.Array, inside_BSL: jax.Array, right_BL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy of the right token among those of its segment, whether it is the likeliest, whether there is one.

    [B, S] each. What a segment without a right token holds adds exactly 0 to the loss and to every gradient.
    """
    right_BSL = inside_BSL & right_BL[:, None, :]
    counts_BS = right_BSL.any(-1)
    logits_BSL = jnp.where(inside_BSL & counts_BS[..., None], logits_BL.astype(jnp.float32)[:, None, :], NEVER)
    target_BS = jnp.where(right_BSL, logits_BSL, 0).sum(-1)
    loss_BS = jnp.where(counts_BS, jax.nn.logsumexp(logits_BSL, axis=-1) - target_BS, 0)
    return loss_BS, counts_BS & (target_BS >= logits_BSL.max(-1)), counts_BS
