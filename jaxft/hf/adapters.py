"""Folders of adapters, of the libraries `peft` and `adapters`: weights of what was added, and a config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.hf import files, read
from jaxft.hf.save import header
from jaxft.registry import UserError

CONFIG, WEIGHTS = files.ADAPTER, "adapter_model.safetensors"
ENDS = {  # task_type -> how an architecture with that head ends
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
WRAPPERS = (".base_layer.", ".modules_to_save.")  # how `peft` names biases that trained, with bias="all"
COPY = ".original_module."  # and those of before
CLASSES = r"base_model\.(model\.)?(score|classifier|classification_head)(\.out_proj)?\.weight"


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    return files.read_json(folder, CONFIG)


def layout(config: Mapping[str, Any]) -> str:
    """The library whose adapter_config.json it is: "peft" or "adapters"."""
    return "adapters" if "peft_type" not in config and {"config", "model_class"} <= set(config) else "peft"


def load(folder: Path, weights: str = WEIGHTS) -> dict[str, np.ndarray]:
    """All tensors, as float32. Raises UserError for a folder without them, or of a dtype that is no float's."""
    if not (folder / weights).is_file():
        raise UserError(f"{folder} has no {weights}; save the adapter as safetensors (other formats can run code)")
    file = files.inside(folder, weights)
    stored, _ = files.header(file, str(file))
    strange = [f"{name} ({tensor.dtype})" for name, tensor in stored.items() if tensor.dtype not in read.DTYPES]
    if strange:
        raise UserError(f"{file}: unsupported dtype of {', '.join(strange)}; supported: {', '.join(read.DTYPES)}")
    return {_plain(name): _whole(tensor) for name, tensor in stored.items() if COPY not in name}


def _plain(name: str) -> str:
    """The name in the network of what `peft` has wrapped."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, ".")
    return name


def head_fields(folder: Path, hf: Mapping[str, Any]) -> dict[str, Any]:
    """What stands over the config.json `hf` of a model for the head in a folder of `peft`, which has none of its own.

    Classes are those of `hf` where it has as many; else they have no names.
    """
    ending = ENDS.get(str(read_config(folder).get("task_type")))
    if ending is None or not (folder / WEIGHTS).is_file():
        return {}
    stored, _ = files.header(files.inside(folder, WEIGHTS), str(folder / WEIGHTS))
    counts = [tensor.shape[0] for name, tensor in stored.items() if re.fullmatch(CLASSES, name)]
    found: dict[str, Any] = {"architectures": [ending]}
    if counts and counts[0] != len(hf.get("id2label") or {}):
        found["id2label"] = {str(i): f"LABEL_{i}" for i in range(counts[0])}
        found["label2id"] = {label: int(i) for i, label in found["id2label"].items()}
    return found


def _whole(tensor: files.Stored) -> np.ndarray:
    if not tensor.shape:
        raise UserError(f"{tensor.file}: a tensor without dimensions is none of an adapter's")
    return read.rows_of(tensor, 0, tensor.shape[0]).astype(np.float32)


def save(folder: Path, tensors: Mapping[str, np.ndarray], weights: str = WEIGHTS) -> None:
    """Writes them as float32, equal ones to equal bytes."""
    whole = {name: np.ascontiguousarray(tensors[name], np.float32) for name in sorted(tensors)}
    begin = header({name: array.shape for name, array in whole.items()}, "F32", 4)
    (folder / weights).write_bytes(b"".join((begin, *(array.tobytes() for array in whole.values()))))
