"""Preferences: of two responses to a prompt the one that was chosen, or single responses that are good or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers import preference
from jaxft.layers.head import tokens_of_segments
from jaxft.metrics.preference import BaselineMeter, PreferenceMeter
from jaxft.registry import BadRow, UserError
from jaxft.tasks import Example
from jaxft.tasks.conversation import ASSISTANT, USER, Conversations, Messages, one_of
from jaxft.tasks.text import Row, Splits, cell, require_columns, settle_metric

OBJECTIVES = ("dpo", "ipo", "orpo", "kto")
DIALECTS = ("prompt", "messages", "sharegpt")
BAD, GOOD, OTHER = 0, 1, 2  # what a response is: to be avoided, to be preferred, or an answer to another prompt
TRUTH = {"true": True, "false": False, "1": True, "0": False}  # as tables of text write it
ANOTHER = "\0another"  # the key under which a row has such an answer
Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclass(frozen=True, kw_only=True)
class Preference(Conversations):
    """text: the columns of the prompt, the chosen and the rejected response; of two whole conversations that differ in
    their last turn; or, with `label`, of a prompt and a response, of which that column says whether it is good.

    A prompt or response is a text, a message or a list of messages of the dialect.
    objective: "dpo", "ipo", "orpo" (without a reference), or "kto", which takes single responses, and the two of a pair
    for such; with train.accumulate its baseline is that of a micro-batch, since it needs the answers of the network
    before its loss, and in scores that of a split. beta: how much it costs to leave the reference; of "orpo" the weight
    of the odds ratio.
    smoothing: of "dpo", the probability that a pair is the wrong way round. desirable, undesirable: weights of good and
    other responses, of "kto"; 1.0 else. metric: the score that picks the best checkpoint.
    """

    label: str
    objective: str
    beta: float
    smoothing: float
    desirable: float
    undesirable: float
    metric: str

    reads: ClassVar[str] = "responses"
    flags: ClassVar[dict[str, str]] = {"text": "text", "label": "label"}
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin")
    dialects: ClassVar[tuple[str, ...]] = DIALECTS

    def __post_init__(self) -> None:
        settle_metric(self)
        self.check_options()
        one_of("task.objective", self.objective, OBJECTIVES)
        if self.beta <= 0:
            raise UserError(f"task.beta={self.beta} must be above 0; 0.1 is common")
        if not 0 <= self.smoothing < 0.5 or (self.smoothing and self.objective != "dpo"):
            raise UserError(f"task.smoothing={self.smoothing} must be at least 0 and below 0.5, and is for 'dpo' alone")
        if min(self.desirable, self.undesirable) < 0:
            raise UserError("task.desirable and task.undesirable must be 0 or more")
        if self.objective != "kto" and (self.desirable, self.undesirable) != (1, 1):
            raise UserError(
                f"task.desirable={self.desirable}, task.undesirable={self.undesirable} are weights of 'kto', and "
                f"task.objective={self.objective!r}: set both to 1.0"
            )

    def check_dialect(self) -> None:
        if self.label and self.objective != "kto":
            raise UserError(f"task.label={self.label!r}: single responses are for task.objective='kto' alone; set ''")
        wanted = (2,) if self.label else (3,) if self.dialect == "prompt" else (2, 3)
        if len(self.text) not in wanted:
            raise UserError(
                f"task.text={self.text!r} must name the columns of a prompt, a chosen and a rejected response; with "
                "task.label those of a prompt and a response; or, of messages, those of two whole conversations"
            )

    @property
    def compared(self) -> int:
        """Responses that share a row."""
        return (1 if self.label else 2) + (self.objective == "kto")

    @property
    def needs_reference(self) -> bool:
        return self.objective != "orpo"

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """As Classless.fit. Only here the label is asked for."""
        require_columns(splits, [("label", self.label)] * bool(self.label), "task.")
        return super().fit(splits, label_names)

    def responses(self, row: Row) -> list[tuple[Messages, int]]:
        """(conversation, GOOD, BAD or OTHER) of each response of a row, which is its last turn. Raises BadRow."""
        if self.label:
            prompt, answers = self._prompt(row), [self._answer(row, self.text[1])]
            kinds = [self._label(row)]
        elif len(self.text) == 2:
            chosen, rejected = (self._turns(row, column, USER) for column in self.text)
            if chosen[:-1] != rejected[:-1]:
                raise BadRow(f"{self.text[0]!r} and {self.text[1]!r} differ in more than their last turn")
            prompt = self._system(row) + chosen[:-1]
            answers, kinds = [_answer(turns[-1:], self.text[0]) for turns in (chosen, rejected)], None
        else:
            prompt, answers = self._prompt(row), [self._answer(row, column) for column in self.text[1:]]
            kinds = None
        if not prompt:
            raise BadRow("there is no prompt")
        if kinds is None and answers[0] == answers[1]:
            raise BadRow("the chosen and the rejected response are equal")
        kinds = [GOOD, BAD] if kinds is None else kinds
        if ANOTHER in row:
            answers, kinds = [*answers, row[ANOTHER]], [*kinds, OTHER]
        return [([*prompt, answer], kind) for answer, kind in zip(answers, kinds, strict=True)]

    def _prompt(self, row: Row) -> Messages:
        return self._system(row) + self._turns(row, self.text[0], USER)

    def _turns(self, row: Row, column: str, role: str) -> Messages:
        """The messages of a column that has a text, which `role` says, a message, or a list of them. Raises BadRow."""
        value = cell(row, column)
        if isinstance(value, Mapping) and value.keys() & {"role", "from"} and not isinstance(value.get("role"), list):
            value = [value]
        if not isinstance(value, str):
            return self.listed(value, column)
        if not value.strip():
            raise BadRow(f"{column!r} is empty")
        return [{"role": role, "content": value}]

    def _answer(self, row: Row, column: str) -> dict[str, Any]:
        return _answer(self._turns(row, column, ASSISTANT), column)

    def _label(self, row: Row) -> int:
        value = cell(row, self.label)
        if isinstance(value, str):  # tables of text have nothing else
            value = TRUTH.get(value.strip().lower(), value)
        if value not in (0, 1):
            raise BadRow(f"{self.label!r} is {value!r}; it must be true or false, or 1 or 0")
        return GOOD if value else BAD

    def example(self, row: Row, labelled: bool = True) -> list[Example]:
        """What is said, whoever says it: the texts that a tokenizer is trained on. Raises BadRow."""
        said = [[message["content"] for message in turns if message.get("content")] for turns, _ in self.responses(row)]
        return [Example(text, None, None) for text in said]

    def log_likelihoods(self, logits: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """log P(response | prompt), float32 [B, S]; 0 of empty slots."""
        return _of_segments(logits.log_probabilities(batch["label"], batch["weight"]), batch)

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> Sums:
        """Sums and weights: loss and accuracy of pairs (of "kto": of responses), the rewards of good and bad responses.

        Right is a pair whose chosen response has the higher reward; of "kto" a response on its side of the baseline.
        """
        return self._sums(self._ratio(logits, batch), batch["kind"])

    def _ratio(self, logits: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """log(policy / reference) of each response, [B, S]; in the mean of its tokens where the objective has it so."""
        policy_BS = self.log_likelihoods(logits, batch)
        if self.objective in ("ipo", "orpo"):
            tokens_BS = jnp.maximum(_of_segments(batch["weight"], batch), 1)
        else:
            tokens_BS = jnp.ones_like(policy_BS)
        return (policy_BS - batch["reference"]) / tokens_BS if self.needs_reference else policy_BS / tokens_BS

    def _sums(self, ratio_BS: jax.Array, kind_BS: jax.Array) -> Sums:
        sums = (self._of_single if self.objective == "kto" else self._of_pairs)(ratio_BS, kind_BS)
        reward_BS = jax.lax.stop_gradient(self.beta * ratio_BS)
        for name, kind in (("chosen_reward", GOOD), ("rejected_reward", BAD)):
            sums[name] = (jnp.where(kind_BS == kind, reward_BS, 0).sum(), (kind_BS == kind).sum().astype(jnp.float32))
        return sums

    def _of_pairs(self, ratio_BS: jax.Array, kind_BS: jax.Array) -> Sums:
        """The two of a pair are neighbours, the chosen one first."""
        B, S = ratio_BS.shape
        ratio_BP2, real_BP = ratio_BS.reshape(B, S // 2, 2), kind_BS[:, ::2] == GOOD
        chosen_BP, rejected_BP = ratio_BP2[..., 0], ratio_BP2[..., 1]
        if self.objective == "dpo":
            loss_BP = preference.dpo(chosen_BP - rejected_BP, beta=self.beta, smoothing=self.smoothing)
        elif self.objective == "ipo":
            loss_BP = preference.ipo(chosen_BP - rejected_BP, beta=self.beta)
        else:
            loss_BP = preference.orpo(chosen_BP, rejected_BP, beta=self.beta)
        pairs = real_BP.sum().astype(jnp.float32)
        right = (real_BP & (chosen_BP > rejected_BP)).sum().astype(jnp.float32)
        return {"loss": (jnp.where(real_BP, loss_BP, 0).sum(), pairs), "accuracy": (right, pairs)}

    def _of_single(self, ratio_BS: jax.Array, kind_BS: jax.Array) -> Sums:
        good_BS, counts_BS = kind_BS == GOOD, (kind_BS == GOOD) | (kind_BS == BAD)
        baseline = preference.kto_baseline(ratio_BS, kind_BS == OTHER)
        weight_BS = jnp.where(good_BS, self.desirable, self.undesirable)
        loss_BS = weight_BS * preference.kto(ratio_BS, baseline, good_BS, beta=self.beta)
        count = counts_BS.sum().astype(jnp.float32)
        right = (counts_BS & (good_BS == (ratio_BS > baseline))).sum().astype(jnp.float32)
        return {"loss": (jnp.where(counts_BS, loss_BS, 0).sum(), count), "accuracy": (right, count)}

    def seen(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to score: the sums say it all, but of "kto", whose baseline is that of a split."""
        return {"ratio": self._ratio(logits, batch), "kind": batch["kind"]} if self.objective == "kto" else {}

    def meter(self) -> PreferenceMeter:
        return BaselineMeter(self._of_split) if self.objective == "kto" else PreferenceMeter("pairs")

    def _of_split(self, ratio_X: np.ndarray, kind_X: np.ndarray) -> Sums:
        return jax.device_get(self._sums(jnp.asarray(ratio_X)[None], jnp.asarray(kind_X)[None]))


def _answer(turns: Messages, column: str) -> dict[str, Any]:
    if len(turns) != 1 or turns[0]["role"] != ASSISTANT:
        roles = ", ".join(turn["role"] for turn in turns)
        raise BadRow(f"{column!r} must be one turn of the assistant; it has: {roles}")
    return turns[0]


def _of_segments(values_BL: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Sums over the tokens of each segment, [B, S]."""
    inside_BSL = tokens_of_segments(batch).astype(jnp.float32)
    # A sum and no product: GPUs and TPUs multiply float32 in fewer bits.
    return (inside_BSL * values_BL[:, None, :]).sum(-1)
