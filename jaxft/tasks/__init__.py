"""Tasks: what a row means, which head and loss it takes, how it is scored.

A task is a frozen dataclass whose fields are the options of the config's `task` section. `fit` returns it with the
classes found in the data; from then on it turns rows into examples, logits into losses, and scores into a report.

Its `loss` gives sums and weights, "loss" among them. One that is made of several means, each over something else, has
`shares` instead, name -> the coefficient of the mean of that sum, and `weights(batch)`, name -> the weight that the sum
will have: the step takes the means over its whole batch, however many micro-batches that comes in (layers/loss.py).

What verbs ask of some tasks only, on the class:

within      the option that holds the section of the task that a finished model is used for, as a student is (distill)
generates   True: its model makes texts, with the option `prefix` before what it is given
flags       of a task that labels no rows: the verbs' flags that name a column -> the option that does
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft.registry import UserError, check_options, lookup

TASKS = {
    "causal_lm": "jaxft.tasks.causal_lm:CausalLm",
    "chat": "jaxft.tasks.chat:Chat",
    "cls": "jaxft.tasks.cls:Cls",
    "detection": "jaxft.tasks.detection:Detection",
    "distill": "jaxft.tasks.distill:Distill",
    "dpo": "jaxft.tasks.preference:Preference",
    "image_cls": "jaxft.tasks.image_cls:ImageCls",
    "masked_lm": "jaxft.tasks.masked_lm:MaskedLm",
    "multiple_choice": "jaxft.tasks.multiple_choice:MultipleChoice",
    "multilabel": "jaxft.tasks.multilabel:Multilabel",
    "pair": "jaxft.tasks.pair:Pair",
    "regression": "jaxft.tasks.regression:Regression",
    "retrieval": "jaxft.tasks.retrieval:Retrieval",
    "seq2seq": "jaxft.tasks.seq2seq:Seq2Seq",
    "similarity": "jaxft.tasks.similarity:Similarity",
    "span_corruption": "jaxft.tasks.span_corruption:SpanCorruption",
    "span_qa": "jaxft.tasks.span_qa:SpanQa",
    "token_cls": "jaxft.tasks.token_cls:TokenCls",
}


class Example(NamedTuple):
    """A row of text as the token cache wants it."""

    text: Any  # str; list[str]: words, each of which has a label; integer [tokens]: token ids
    pair: str | None  # the second text of a sentence pair
    label: int | float | list[float] | list[int] | None  # None: unlabelled


class Picture(NamedTuple):
    """A row with an image as the image cache wants it."""

    image: Any  # the name of a file, its bytes, or uint8 [rows, columns(, channels)]
    label: int | None


class Companion(NamedTuple):
    """A network that a task asks for beside its own (jaxft/companions.py)."""

    hf: str  # hub id or folder to begin with; "": random weights, of what the task declares
    field: str  # of the config, for messages
    head: str
    outputs: int
    trained: bool  # along with the other, or only asked
    shares: str = ""  # what the paths of parameters begin with that are the other network's
    read: float = 0.0  # share of a row's tokens whose vectors its head is given
    export: bool = False  # as a folder of its own, hf-<name>


OF_TOKENS = "ForTokenClassification"  # how the architectures end that have a token head
_CLASSLESS = {
    "ForMultipleChoice": "multiple_choice",
    "ForQuestionAnswering": "span_qa",
}  # those whose head has no classes -> task
_PROBLEMS = {  # what the model reads -> config.json's problem_type -> task
    "text": {
        "single_label_classification": "cls",
        "multi_label_classification": "multilabel",
        "regression": "regression",
    },
    "image": {"single_label_classification": "image_cls"},
}


def used_for(section: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """(class, section) of the task that the finished model of a run with this section is used for."""
    task = lookup(TASKS, section["name"], "task.name")
    within = getattr(task, "within", "")
    return used_for(section[within]) if within else (task, section)


def task_from_hf(hf: Mapping[str, Any], *, reads: str = "text", **options: Any) -> Any:
    """The task of a Hugging Face folder's config.json, its classes filled in.

    `reads` is what its model reads. `options` are those of the task: columns that have other names than
    the task's own, and what config.json has no field for. They go before those that it keeps for a task of this name
    below task_specific_params.
    Models of tokens and those without classes are known by their architecture. As in transformers, another config
    without problem_type regresses with one output and classifies with more. Raises UserError for one that names no
    classes. One that says how vectors are pooled (hf/sentence.py) gives vectors.
    """
    if "pooling" in options:
        return _made("similarity" if "label" in options else "retrieval", hf, options)
    for architecture, name in _CLASSLESS.items():
        if _is(hf, architecture):
            return _made(name, hf, options)
    if not isinstance(hf.get("id2label"), Mapping) or not hf["id2label"]:
        raise UserError(
            "config.json has no id2label: this is not a fine-tuned classifier or regressor. A run on running text is "
            "scored by jaxft.evaluate --run=RUN; a decoder's texts are written by jaxft.generate"
        )
    guess = "regression" if len(hf["id2label"]) == 1 else "single_label_classification"
    problem, known = hf.get("problem_type") or guess, _PROBLEMS[reads]
    if _is(hf, OF_TOKENS):
        return _made("token_cls", hf, options)
    if problem not in known:
        raise UserError(f"config.json: problem_type={problem!r} is not known; known: {', '.join(known)}")
    return _made(known[problem], hf, options)


def _is(hf: Mapping[str, Any], architecture: str) -> bool:
    return any(str(name).endswith(architecture) for name in hf.get("architectures") or ())


def _made(name: str, hf: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    task = lookup(TASKS, name, "task.name")
    kept = task.columns | ((hf.get("task_specific_params") or {}).get(name) or {})
    for field, these, others in (("task", options, kept), (f"config.json: task_specific_params.{name}", kept, options)):
        check_options(task.from_hf, these, field, ("config", *(others.keys() - these.keys())))
    return task.from_hf(hf, **kept | options)
