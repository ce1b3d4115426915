"""A hub folder, ready to label texts or images: what predict, evaluate and export --verify run."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from jaxft import adapters, build, inputs, scoring, sharding, state
from jaxft.config import Sharding
from jaxft.data.source import Split
from jaxft.hf import sentence
from jaxft.registry import UserError
from jaxft.tasks import task_from_hf

ROWS = 32  # of a step; the last one of a chunk is filled with empty rows
RULES = {"B": ("data",)}


class Classifier:
    """Network, parameters, task and reader of a hub folder, on all devices as data parallel."""

    def __init__(
        self,
        source: str,
        *,
        task: Mapping[str, Any],
        length: int,
        dtype: str,
        base: str = "",
        field: str = "--hf",
        like: Self | None = None,
    ):
        """`task` holds options of the task (columns among them), `length` the most tokens to read (0: as trained).

        `source` may be an adapter; then `base` is the model that it is applied to, by default the one that it names.
        `field` is where people gave `source`. `like`: another of the same model, whose weights are taken instead of
        read.
        """
        at = adapters.opened(source, base, field)
        folder, hf = at.beside, at.hf
        section = adapters.section(hf["model_type"], source, dtype=dtype, param_dtype="float32")
        family = build.family_of(section, hf)
        pooling = sentence.pooling(at.adapter or at.base)
        task = task if pooling is None else {"pooling": pooling, **task}
        self.task = self.task_of(hf, inputs.reads(family)[0], task)
        self.reader = inputs.of(self.task, family).Reader(folder, length, self.task)
        _, cfg = build.family_config(section, hf, **self.reader.fields)
        self.reader.fit(cfg)
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
        self.rows = -(-ROWS // mesh.size) * mesh.size
        make = functools.partial(
            build.network,
            family,
            cfg,
            head=self.task.head,
            outputs=self.task.outputs,
            model=section,
            rules=Sharding({}, RULES),
            mesh=mesh,
        )
        self.base = at.base
        shared = like.own if like is not None and like.base == at.base else None
        self.net, self.params, self.own, new = adapters.loaded(make, at, shared)
        if new:
            raise UserError(
                f"{source} has no trained {self.task.head} head: it lacks {', '.join(new)}; fine-tune it first"
            )
        self.where = sharding.batch_sharding(mesh, RULES)
        self.step = jax.jit(self._readout, out_shardings=sharding.replicated(mesh))
        self.eval_step = state.evaluation_step(self.net, self.task)

    def task_of(self, hf: Mapping[str, Any], reads: str, options: Mapping[str, Any]) -> Any:
        """The task of a model with such a config.json. Raises UserError where it has none of those that label."""
        return task_from_hf(hf, reads=reads, **options)

    def _readout(self, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        with self.net.tracing():
            return self.task.readout(self.net.forward(params, batch), batch)

    def split(self, split: Split) -> Split:
        """The rows that `example` takes, of those of a data set."""
        return split

    def example(self, row: Mapping[str, Any], labelled: bool = True) -> Any:
        """Raises BadRow for a row that cannot be used."""
        return self.reader.example(self.task.example(row, labelled))

    def logits(self, examples: Sequence[Any], places: Sequence[str]) -> Any:
        """What the task's `predictions` are made of, in the order of `examples`, which stand at `places`.

        float32 [n, C]; of words a list of [words, C] (inputs/words.py). Raises UserError with the place ("x.jsonl:17")
        of an example that does not fit the model.
        """
        batches = self.reader.batches(examples, places, self.rows)
        computed = (
            (batch, np.asarray(self.step(self.params, scoring.to_device(batch, self.where)))) for batch in batches
        )
        return self.reader.gathered(examples, self.task.outputs, computed)

    def score(self, examples: Sequence[Any], places: Sequence[str], meter: Any) -> None:
        """Adds labelled examples to a meter of the task."""
        meter.tell(examples)
        scoring.score(self.eval_step, self.params, self.reader.batches(examples, places, self.rows), meter, self.where)
