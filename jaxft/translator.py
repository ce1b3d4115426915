"""A hub folder that makes texts of texts, ready to be scored: what evaluate runs of such a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft import scoring
from jaxft.classifier import Classifier
from jaxft.data.pipeline import WHOLE
from jaxft.inputs.seq2seq import add_texts, programs
from jaxft.registry import call
from jaxft.tasks import TASKS
from jaxft.tasks.seq2seq import ALL
from jaxft.texts import wanted


class Translator(Classifier):
    """As Classifier, of pairs. What is written is as the folder's generation_config.json says."""

    def __init__(self, source: str, *, task: Mapping[str, Any], length: int, dtype: str):
        super().__init__(source, task=task, length=length, dtype=dtype)
        hub_says = wanted(self.base)
        flags = {"max_new_tokens": hub_says.get("max_new_tokens", self.task.max_new_tokens)}
        self.texts = programs(self.net, hub_says, flags, batch=self.rows)
        self._apart = self.net.apart(self.params, keep=True)

    def task_of(self, hf: Mapping[str, Any], reads: str, options: Mapping[str, Any]) -> Any:
        """The task of the run, which now writes a text for every row."""
        return call(TASKS, {**options, "write_last": ALL}, "task")

    def example(self, row: Mapping[str, Any], labelled: bool = True) -> Any:
        """As Classifier.example; raises Dropped for a pair that the task leaves out."""
        example = super().example(row, labelled)
        if labelled:
            self.reader.check(example, self.task)
        return example

    def score(self, examples: Sequence[Any], places: Sequence[str], meter: Any) -> None:
        held = self.reader.pairs(examples, places, self.task)
        batches = held.eval_batches(batch=self.rows, share=WHOLE)
        scoring.score(self.eval_step, self.params, batches, meter, self.where)
        used = sorted(held.plan.examples.tolist())
        add_texts(meter, held, used, [examples[i] for i in used], self.texts, self._apart, self.reader.target_encoder)
