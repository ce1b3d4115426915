"""Running sums of a training run between two log lines: loss, speed, utilisation, non-finite steps."""

import contextlib
import time
from collections.abc import Iterator
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
    """Of one network, with a head of words."""
    words = 6 * read * net.cfg.vocab * net.cfg.d_model if net.head.endswith("_lm") else 0.0
    return net.family.flops_per_token(net.cfg, attended, read) + words


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
        self.newest: Any = None
        self.before: Any = None
        self.step = run.step
        self.started = time.perf_counter()
        self.away = 0.0

    def formula(self) -> str:
        """What a utilisation printed later means."""
        return (
            f"MFU: tokens/s x {self.flops_per_token:.3g} FLOPs a token ({self.flops_text}, forward and backward) / "
            f"{self.peak or 0:.3g} FLOP/s of the mesh in bfloat16"
        )

    def add(self, step: int, sums: Any) -> None:
        self.sums.append(sums)
        self.step, self.before, self.newest = step, self.newest, sums

    def streaks(self) -> list[tuple[int, int]]:
        """(step, non-finite steps in a row up to it) of the step before the newest, which may still be running.

        So each step is told once, without waiting for it; after the last step both are.
        """
        ended = [(self.step - 1, self.before), *([(self.step, self.newest)] if self.step == self.total else [])]
        return [(step, int(sums["bad_streak"][0])) for step, sums in ended if sums is not None]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluation, saving) does not count towards the speed."""
        jax.block_until_ready(self.newest)
        entered = time.perf_counter()
        try:
            yield
        finally:
            self.away += time.perf_counter() - entered

    def flush(self, lr: float) -> dict[str, float]:
        """The metrics since the last flush. Speeds are over real tokens and examples, padding not counted."""
        done = jax.device_get(self.sums)
        seconds = max(time.perf_counter() - self.started - self.away, 1e-9)
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
        self.sums, self.started, self.away = [], time.perf_counter(), 0.0
        return metrics
