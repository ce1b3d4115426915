"""From config to batches, one module for each kind of thing that a task reads. A module offers, for run.py:

placeholders(config)     stand-ins for the fields of a model's Config that only the data tell
prepare(config, cfg, folder, hf_folder, say)    the data read, the task fitted to them: an `Inputs` (base.py)
beside(config, cfg, folder, hf_folder)          writes what stands beside the weights of an export

and for the verbs that label rows:

Reader(folder, length)   what a hub folder says of its inputs; examples to batches
"""

from typing import Any

from jaxft.registry import UserError, lookup

INPUTS = {
    "text": "jaxft.inputs.text",
    "image": "jaxft.inputs.image",
}


def reads(family: Any) -> str:
    """What a family of models reads, a key of INPUTS."""
    return "image" if family.KIND == "vision" else "text"


def of(task: Any, family: Any) -> Any:
    """The module of what `task` reads. Raises UserError where the family reads something else."""
    if task.reads != reads(family):
        raise UserError(
            f"the task reads {task.reads}, and a {family.MODEL_TYPE} model reads {reads(family)}: set another "
            "task.name, or another model.hf or model.name"
        )
    return lookup(INPUTS, task.reads, "task.name")
