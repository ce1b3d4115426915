"""Replaced-token detection (Clark et al. 2020, ELECTRA): which tokens of a text did another network put there?"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxft.layers.loss import sigmoid_binary_cross_entropy
from jaxft.layers.vocab import VocabLogits
from jaxft.metrics.detection import DetectionMeter
from jaxft.registry import UserError, check_options
from jaxft.tasks import Companion
from jaxft.tasks.masked_lm import Batch, MaskedLm

GENERATOR = "generator"
EMBEDDING = "embed/text/"  # word, position and type tables and the norm of their sum: of both networks


class Answers(NamedTuple):
    """What the two networks say of a batch."""

    guesses: VocabLogits  # the generator's of the hidden tokens, [B, K]
    logits_BL: jax.Array  # that a token is not the original
    replaced_BL: jax.Array  # whether it is not


@dataclass(frozen=True, kw_only=True)
class Detection(MaskedLm):
    """As MaskedLm, of whose options `rate` and `whole_words` say what a small masked LM, the generator, has to guess.

    The model is told the generator's guesses, drawn by their probabilities, and finds those that are wrong. The loss is
    the generator's cross-entropy + weight * the binary cross-entropy of all tokens (50 in the paper).
    generator: fields of its Config that differ from the model's, from random weights. generator_hf: hub id or folder of
    one to go on with.
    """

    weight: float
    generator: dict
    generator_hf: str

    masked: ClassVar[float] = 0.85  # as the authors' program hides tokens, which the paper does not tell
    random: ClassVar[float] = 0.0
    head: ClassVar[str] = "detection"
    outputs: ClassVar[int] = 1
    metrics: ClassVar[tuple[str, ...]] = ("loss", "f1", "accuracy", "perplexity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight <= 0:
            raise UserError(f"task.weight={self.weight} must be above 0; 50 is ELECTRA's")
        if self.generator and self.generator_hf:
            raise UserError(
                "task.generator is for one of random weights, and task.generator_hf names another: leave one"
            )

    @property
    def read(self) -> float:
        return 1.0

    def change(self, vocabulary: Any, cfg: Any, pieces: Any) -> Any:
        """As MaskedLm.change; `original` [B, L] are the ids before."""
        hide = super().change(vocabulary, cfg, pieces)

        def hidden(batch: Batch, draws: Any) -> Batch:
            return hide(batch, draws) | {"original": batch["ids"]}

        return hidden

    @property
    def companions(self) -> dict[str, Companion]:
        field = "task.generator_hf" if self.generator_hf else "task.generator"
        return {
            GENERATOR: Companion(
                self.generator_hf, field, "masked_lm", 0, True, shares=EMBEDDING, read=self.rate, export=True
            )
        }

    def declare(self, name: str, net: Any) -> tuple[Any, Any]:
        """The generator of random weights: the model with other sizes. Raises UserError for a field that is none."""
        check_options(net.family.Config, self.generator, "task.generator", ("vocab", "pad_id"))
        return net.family, dataclasses.replace(net.cfg, **self.generator)

    def check_companions(self, net: Any) -> None:
        """What both share has the same shape (companions.attach), and that is all they need."""

    def assumed(self, net: Any) -> list[str]:
        """Nothing is taken for granted."""
        return []

    def forward(self, net: Any, params: Any, given: Any, batch: Mapping[str, jax.Array], key: Any) -> tuple[Any, Any]:
        """(Answers, losses of the judge's own): hidden tokens guessed, guesses in their places, every token judged."""
        generator = net.companions[GENERATOR]
        guessing, drawing, judging = (None, None, None) if key is None else jax.random.split(key, 3)
        if drawing is None:  # an evaluation draws alike each time, and not alike in each batch
            drawing = jax.random.fold_in(jax.random.key(0), batch["example"][0, 0])
        guesses, _ = generator.net.forward_with_losses(generator.whole(params[GENERATOR], params), batch, guessing)
        B, L = batch["ids"].shape
        at_BK = jnp.where(batch["weight"] > 0, batch["at"], L)  # beyond the row: put nowhere
        rows_B1 = jnp.arange(B)[:, None]
        shown_BL = batch["original"].at[rows_B1, at_BK].set(guesses.sample(drawing), mode="drop")
        logits_BL, losses = net.forward_with_losses(params, {**batch, "ids": shown_BL}, judging)
        return Answers(guesses, logits_BL, shown_BL != batch["original"]), losses

    @property
    def shares(self) -> dict[str, float]:
        return {"detection_loss": self.weight, "generator_loss": 1.0}

    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        tokens = (batch["segment"] > 0).sum().astype(jnp.float32)
        return {"detection_loss": tokens, "generator_loss": batch["weight"].sum()}

    def loss(self, logits: Answers, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums and weights: the two parts of the loss; how many tokens were judged rightly and found."""
        guesses, logits_BL, replaced_BL = logits
        real_BL = (batch["segment"] > 0).astype(jnp.float32)
        wrong, tokens = sigmoid_binary_cross_entropy(logits_BL[..., None], replaced_BL[..., None], real_BL)
        guessed = guesses.cross_entropy(batch["label"], batch["weight"])
        said_BL = (logits_BL > 0) * real_BL
        found, said, all_replaced = (said_BL * replaced_BL).sum(), said_BL.sum(), (replaced_BL * real_BL).sum()
        right = tokens - said - all_replaced + 2 * found
        return {
            "detection_loss": (wrong, tokens),
            "accuracy": (right, tokens),
            "marked": (said, tokens),
            "recall": (found, all_replaced),
            "generator_loss": guessed["loss"],
            "generator_accuracy": guessed["accuracy"],
        }

    def meter(self) -> DetectionMeter:  # pyright: ignore[reportIncompatibleMethodOverride]
        return DetectionMeter(self.shares)
