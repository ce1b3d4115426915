"""A split, scored: batches through the evaluation step into the task's meter."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def to_device(batch: dict[str, np.ndarray], where: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    """This process's rows [B / processes, ...] as global arrays [B, ...]."""
    return {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}


def score(
    eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[dict[str, np.ndarray]], meter: Any, where: Any
) -> Any:
    """Feeds `meter` the logits [n, C] and labels [n] of every real example and the summed loss, then returns it.

    `eval_step` gives outputs replicated over the mesh, so every process sees all rows and reaches the same metrics.
    """
    for batch in batches:
        sums, outputs = jax.device_get(eval_step(params, to_device(batch, where)))
        real_BS = outputs["example"] >= 0
        loss_sum, weight = (float(x) for x in sums["loss"])
        meter.add(outputs["logits"][real_BS], outputs["label"][real_BS], loss_sum, weight)
    return meter
