"""From config to batches, one module for each kind of thing that a task reads. A module offers, for run.py:

placeholders(config)     stand-ins for the fields of a model's Config that only the data tell
prepare(config, cfg, folder, hf_folder, say)    the data read, the task fitted to them: an `Inputs` (base.py)
beside(config, cfg, folder, hf_folder)          writes what stands beside the weights of an export
blank(config, cfg, task)        a batch of one row of made-up tokens, laid out as those of the data are; for plan.py

and for the verbs that label rows:

Reader(folder, length, task)   what a hub folder says of its inputs; examples to batches
"""

from typing import Any

from jaxft.registry import UserError, lookup

INPUTS = {
    "text": "jaxft.inputs.text",
    "chat": "jaxft.inputs.chat",
    "corpus": "jaxft.inputs.corpus",
    "groups": "jaxft.inputs.groups",
    "image": "jaxft.inputs.image",
    "responses": "jaxft.inputs.responses",
    "windows": "jaxft.inputs.windows",
    "vectors": "jaxft.inputs.vectors",
    "words": "jaxft.inputs.words",
    "seq2seq": "jaxft.inputs.seq2seq",
}

# What the several pieces of an example are called, of the kinds where it may have several.
PIECES = {"groups": "texts", "responses": "responses", "vectors": "texts", "windows": "windows"}


def reads(family: Any) -> tuple[str, ...]:
    """What a family of models can read, keys of INPUTS; the first is what its classifiers read."""
    return ("image",) if family.KIND == "vision" else tuple(name for name in INPUTS if name != "image")


def of(task: Any, family: Any) -> Any:
    """The module of what `task` reads. Raises UserError where the family reads something else."""
    if task.reads not in reads(family):
        raise UserError(
            f"the task reads {task.reads}, and a {family.MODEL_TYPE} model reads {', '.join(reads(family))}: set "
            "another task.name, or another model.hf or model.name"
        )
    if task.head not in family.HF_HEADS:
        heads = ", ".join(family.HF_HEADS)
        raise UserError(
            f"the task needs a {task.head} head, and a {family.MODEL_TYPE} model has: {heads}; set another "
            "task.name, or another model.hf or model.name"
        )
    return lookup(INPUTS, task.reads, "task.name")
