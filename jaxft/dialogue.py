"""A run on conversations or preferences, ready to be scored on other rows: what evaluate runs of such a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft import build, reference, scoring
from jaxft.classifier import Classifier
from jaxft.config import Config
from jaxft.data.pipeline import Batch
from jaxft.data.source import Split
from jaxft.hf import hub
from jaxft.registry import call
from jaxft.tasks import TASKS


class Dialogue(Classifier):
    """As Classifier, of the hub folder `source` of a run that `config` describes.

    Where the task compares with the weights that training began with, these are read again from model.hf, or drawn
    again by the seed.
    """

    def __init__(self, source: str, *, config: Config, task: Mapping[str, Any], length: int, dtype: str):
        super().__init__(source, task=task, length=length, dtype=dtype)
        self.before: Any = None
        if getattr(self.task, "needs_reference", False):
            folder = hub.resolve(config.model.hf) if config.model.hf else None
            self.before, _ = build.parameters(self.net, folder, config.seed, config.model.reset_head)
            self.likelihoods = reference.compiled(self.net, self.task)

    def task_of(self, hf: Mapping[str, Any], reads: str, options: Mapping[str, Any]) -> Any:
        """The task of the run."""
        return call(TASKS, options, "task")

    def split(self, split: Split) -> Split:
        return self.reader.split(split)

    def example(self, row: Mapping[str, Any], labelled: bool = True) -> Any:
        """Raises BadRow for a row that cannot be used, and Dropped for one that the task leaves out."""
        return self.reader.read(row)

    def score(self, examples: Sequence[Any], places: Sequence[str], meter: Any) -> None:
        batches = self.reader.batches(examples, places, self.rows)
        scoring.score(self.eval_step, self.params, self._told(batches), meter, self.where)

    def _told(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """With `reference` [B, S], where the task needs it."""
        for batch in batches:
            if self.before is None:
                yield batch
                continue
            value_BS, example_BS = jax.device_get(self.likelihoods(self.before, scoring.to_device(batch, self.where)))
            yield batch | {"reference": np.where(example_BS >= 0, value_BS, 0)}
