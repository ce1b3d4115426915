"""Running sums of a training run between two log lines: loss, speed, utilisation, non-finite steps."""

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jaxft.chips import peak_flops


def model_flops(net: Any, task: Any, attended: float) -> float:
    """Model FLOPs of a token that attends over `attended` tokens, forward and backward, companions included.

    What is computed again in the backward pass does not count.
    """
    total = _flops(net, attended, task.read)
    for beside in net.companions.values():  # who only answers goes forward alone, a third of the work
        whole = _flops(beside.net, attended, beside.wish.read)
        total += whole if beside.wish.trained else whole / 3
    return total


def _flops(net: Any, attended: float, read: float) -> float:
    """Of one network, with a head of words; what a method of peft adds to it is left out."""
    words = 6 * read * net.cfg.vocab * net.cfg.d_model if net.head.endswith("_lm") else 0.0
    whole = net.family.flops_per_token(net.cfg, attended, read) + words
    of_weights = net.family.flops_per_token(net.cfg, 0.0, read) + words
    # Of weights that stay nobody asks the gradient, which is a third of the work that they are in.
    return whole - of_weights / 3 if net.peft.frozen else whole


@dataclass(frozen=True)
class Ended:
    """What the loop looks at of every step."""

    step: int
    bad_streak: int  # non-finite steps in a row up to it
    loss: float  # NaN of a batch without labels


class Throughput:
    """Collects the sums of each step without waiting for it; `flush` divides once."""

    def __init__(self, run: Any):
        lengths, rows = run.inputs.lengths, run.inputs.rows("train")
        batch = run.config.train.batch
        self.examples_per_step = run.inputs.examples_to_train / rows * batch
        self.tokens_per_step = float(lengths.sum()) / rows * batch
        self.flops_per_token = model_flops(run.net, run.task, run.inputs.attended)
        self.flops_text = run.net.family.Model.FLOPS_PER_TOKEN
        peak = peak_flops(run.mesh.devices.flat[0])
        self.peak = peak * run.mesh.size if peak else None
        self.total = run.cadence.total
        self.sums: list[Any] = []
        self.untold: collections.deque[tuple[int, Any]] = collections.deque()
        self.step = run.step
        self.ledger, self.since = run.ledger, run.ledger.training()

    def formula(self) -> str:
        """What a utilisation printed later means."""
        return (
            f"MFU: tokens/s x {self.flops_per_token:.3g} FLOPs a token ({self.flops_text}, forward and backward) / "
            f"{self.peak or 0:.3g} FLOP/s of the mesh in bfloat16"
        )

    def add(self, step: int, sums: Any) -> None:
        self.sums.append(sums)
        self.untold.append((step, sums))
        self.step = step

    def ended(self, *, newest: bool) -> Iterator[Ended]:
        """Each step once, up to the one before the newest, which may still be running; or, waiting, with the newest."""
        while len(self.untold) > (0 if newest else 1):
            step, sums = self.untold.popleft()
            streak, (total, weight) = jax.device_get((sums["bad_streak"][0], sums["loss"]))
            yield Ended(step, int(streak), float(total) / float(weight) if weight else float("nan"))

    def flush(self, lr: float) -> dict[str, float]:
        """The metrics since the last flush, with the newest step, which is waited for.

        Speeds are over real tokens and examples, padding not counted, and over the time that goes into training:
        without evaluations, saving, profiling.
        """
        done = jax.device_get(self.sums)
        now = self.ledger.training()
        seconds = max(now - self.since, 1e-9)
        metrics = {"lr": lr}
        for name in done[0]:
            total, weight = (sum(float(sums[name][i]) for sums in done) for i in (0, 1))
            metrics[name] = total / weight if weight else float("nan")
        metrics |= {name: float(done[-1][name][0]) for name in ("bad_streak", "skipped")}  # counts, as of the last step
        tokens = self.tokens_per_step * len(done) / seconds
        metrics |= {
            "examples_per_second": self.examples_per_step * len(done) / seconds,
            "tokens_per_second": tokens,
            "seconds_left": (self.total - self.step) * seconds / len(done),
        }
        if self.peak:
            metrics["mfu"] = tokens * self.flops_per_token / self.peak
        self.sums, self.since = [], now
        return metrics
