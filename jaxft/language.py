"""A run on running text, ready to be scored on other text: what evaluate runs of such a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft import scoring
from jaxft.classifier import Classifier
from jaxft.config import Config
from jaxft.registry import UserError, call, lookup
from jaxft.tasks import TASKS


class Language(Classifier):
    """As Classifier, of the hub folder `source` of a run that `config` describes.

    Documents come one after the other, in rows and batches of the run's sizes and with its seed: where tokens are
    hidden at random, they are those that the run's own evaluations hide.
    """

    def __init__(self, source: str, *, config: Config, task: Mapping[str, Any], length: int, dtype: str):
        if hasattr(lookup(TASKS, task["name"], "task.name"), "companions"):
            raise UserError(
                f"task.name={task['name']!r} scores several networks together, and evaluate reads one; what the run "
                "scored is in its report.json"
            )
        super().__init__(source, task=task, length=length or config.input.length, dtype=dtype)
        devices = self.where.mesh.size
        self.rows = -(-config.evaluate.batch // devices) * devices
        self._seed = config.seed

    def task_of(self, hf: Mapping[str, Any], reads: str, options: Mapping[str, Any]) -> Any:
        """The task of the run."""
        return call(TASKS, options, "task")

    def score(self, examples: Sequence[Any], places: Sequence[str], meter: Any) -> None:
        batches = self.reader.batches(examples, places, self.rows, self._seed)
        scoring.score(self.eval_step, self.params, batches, meter, self.where)
