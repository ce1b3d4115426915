"""Dialogue: what the assistant says in conversations, token by token, and where it ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jaxft.metrics.language import LanguageMeter
from jaxft.registry import BadRow
from jaxft.tasks import Example
from jaxft.tasks.conversation import ASSISTANT, Conversations, Messages, one_of
from jaxft.tasks.text import Row, settle_metric


@dataclass(frozen=True, kw_only=True)
class Chat(Conversations):
    """turns: what is learned of a conversation, "all" that the assistant says or its "last" turn alone.

    metric: the score that picks the best checkpoint. Further the options of conversations (conversation.py).
    Turns of the system, of users and of tools are read, and not learned.
    """

    turns: str
    metric: str

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    def __post_init__(self) -> None:
        settle_metric(self)
        self.check_options()
        one_of("task.turns", self.turns, ("all", "last"))

    def messages(self, row: Row) -> Messages:
        """As Conversations.messages; BadRow also where there is nothing to learn."""
        messages = super().messages(row)
        if all(message["role"] != ASSISTANT for message in messages):
            raise BadRow("the assistant says nothing, so there is nothing to learn")
        return messages

    def example(self, row: Row, labelled: bool = True) -> Example:
        """What is said, whoever says it: the texts that a tokenizer is trained on. Raises BadRow."""
        return Example([message["content"] for message in self.messages(row) if message.get("content")], None, None)

    def loss(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights over the assistant's tokens: cross-entropy, and how many were the likeliest."""
        return logits.cross_entropy(batch["label"], batch["weight"])

    def seen(self, logits: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the host is given to score: how many conversations there were. The logits stay where they are."""
        return {"example": batch["example"]}

    def meter(self) -> LanguageMeter:
        return LanguageMeter(self.metrics)
