"""What the weights that a run begins with say of its data: computed once, kept in the run folder, never again."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft import atomic, build, scoring, sharding

ABOUT = "about"  # the array of it that says, as JSON, of which data and of which weights it is


def of(run: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Split -> float32 [X], the task's log-likelihood of each example, by the weights before the first step.

    They are those of the run folder where it has them of the same data, so that a run that goes on sees the same bits.
    """
    path, data = run.folder.reference, {name: held.fingerprint for name, held in inputs.caches.items()}
    kept = _read(path, data)
    if kept is not None:
        run.say(f"reference: that of {path}")
        return kept
    run.say("reference: computing what the weights before training say of the data")
    params, _ = build.parameters(run.net, inputs.hf_folder, run.config.seed, run.config.model.reset_head)
    compute = compiled(run.net, inputs.task)
    found = {name: _scores(run, inputs, compute, params, name) for name in inputs.caches}
    about = {"data": data, "weights": _digest_of(params)}
    if jax.process_index() == 0:
        _write(path, found, about)
    return found


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:32]


def compiled(net: Any, task: Any) -> Any:
    """The jitted (parameters, batch) -> (log-likelihoods [B, S], the batch's `example`), replicated."""

    def compute(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        with net.tracing():
            logits, _ = net.forward_with_losses(params, batch, None)
            return task.log_likelihoods(logits, batch), batch["example"]

    return jax.jit(compute, out_shardings=sharding.replicated(net.mesh))


def _scores(run: Any, inputs: Any, compute: Any, params: Any, split: str) -> np.ndarray:
    out = np.full(len(inputs.caches[split].lengths), np.nan, np.float32)
    rows = inputs.eval_batches(split, run.config.evaluate.batch, run.share)
    for batch in rows:
        placed = scoring.to_device(batch, run.batch_sharding)
        value_BS, example_BS = jax.device_get(compute(params, placed))
        out[example_BS[example_BS >= 0]] = value_BS[example_BS >= 0]
    return out


def _digest_of(params: Any) -> str:
    """Sums of all parameters, as far as float32 has them: enough to tell one checkpoint from another."""
    sums = jax.jit(lambda tree: [(leaf.astype("float32").sum(), (leaf.astype("float32") ** 2).sum()) for leaf in tree])
    return digest(np.array(jax.device_get(sums(jax.tree.leaves(params)))))


def _read(path: Path, data: Mapping[str, str]) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file[ABOUT]))
            return {name: file[name] for name in data} if about["data"] == data else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # cut short: computed again


def _write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    held: Any = {ABOUT: np.array(json.dumps(about)), **arrays}
    with atomic.file(path) as draft, draft.open("wb") as file:
        np.savez(file, **held)
