"""Tasks: what a row means, which head and loss it takes, how it is scored.

A task is a frozen dataclass whose fields are the options of the config's `task` section. `fit` returns it with the
classes found in the data; from then on it turns rows into examples, logits into losses, and scores into a report.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft.registry import UserError, lookup

TASKS = {
    "cls": "jaxft.tasks.cls:Cls",
    "multilabel": "jaxft.tasks.multilabel:Multilabel",
    "pair": "jaxft.tasks.pair:Pair",
    "regression": "jaxft.tasks.regression:Regression",
}


class Example(NamedTuple):
    """A row as the token cache wants it."""

    text: str
    pair: str | None  # the second text of a sentence pair
    label: int | float | list[float] | None  # None: unlabelled


_PROBLEMS = {  # config.json's problem_type -> task
    "single_label_classification": "cls",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}


def task_from_hf(config: Mapping[str, Any], **options: Any) -> Any:
    """The task of a Hugging Face folder's config.json, its classes filled in.

    `options` are those of the task: the columns (text, pair, label), and what config.json has no field for.
    As in transformers, a config without problem_type regresses with one output and classifies with more. Raises
    UserError for a config that names no classes.
    """
    if not isinstance(config.get("id2label"), Mapping) or not config["id2label"]:
        raise UserError("config.json has no id2label: this is not a fine-tuned classifier or regressor")
    guess = "regression" if len(config["id2label"]) == 1 else "single_label_classification"
    problem = config.get("problem_type") or guess
    if problem not in _PROBLEMS:
        raise UserError(f"config.json: problem_type={problem!r} is not known; known: {', '.join(_PROBLEMS)}")
    return lookup(TASKS, _PROBLEMS[problem], "task.name").from_hf(config, **options)
