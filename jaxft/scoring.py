"""A split, scored: batches through the evaluation step into the task's meter."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def to_device(batch: dict[str, np.ndarray], where: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    """The rows of a batch that this process has (pipeline.Share) as global arrays [B, ...]."""
    return {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}


def score(
    eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[dict[str, np.ndarray]], meter: Any, where: Any
) -> Any:
    """Feeds `meter` what it sees of every batch (Meter.update), then returns it.

    `eval_step` gives outputs replicated over the mesh, so every process sees all rows and reaches the same metrics.
    """
    for batch in batches:
        meter.update(*jax.device_get(eval_step(params, to_device(batch, where))))
    return meter
