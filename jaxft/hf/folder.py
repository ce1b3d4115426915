"""A whole hub folder: weights, config.json, tokenizer, model card."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxft import disk
from jaxft.hf import generation, processor, save, sentence, tokenizer

# What stands beside the weights.
CONFIG, CARD = "config.json", "README.md"
BESIDE = (CONFIG, CARD, generation.FILE, processor.FILE, *tokenizer.FILES, *sentence.FILES)


def write(
    folder: Path,
    net: Any,
    params: Any,
    *,
    task: Mapping[str, Any],
    beside: Callable[[Path], object],
    source: Path | None,
    dtype: str,
    card: str,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes `folder` so that transformers opens it; an older export of that name is replaced whole.

    `task` holds the config.json fields of the head (id2label, problem_type, ...); `dtype` is that of the tensors;
    `beside` writes what the model reads with, a tokenizer say, into the folder that it is given;
    `source` is the folder of the checkpoint that training began with, if it did with one.
    `check` is given the complete folder before it takes its place: when it raises, `folder` stays as it was.
    """
    config = config_of(net, task, dtype)
    with disk.writing(folder), save.replacing(folder, beside=BESIDE) as new:
        save.save(new, params, net.table, dtype=dtype, shapes=net.stored)  # by all processes: arrays are gathered
        if jax.process_index() == 0:
            save.save_json(new, CONFIG, config)
            beside(new)
            generation.write(new, net, source)
            (new / CARD).write_text(card, encoding="utf-8")
            if check is not None:
                check(new)


def config_of(net: Any, task: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json of a network whose head has the fields `task` and whose tensors are of `dtype`."""
    return {
        "architectures": [net.family.HF_ARCHITECTURES[net.head]],
        "model_type": net.family.MODEL_TYPE,
        **net.family.config_to_hf(net.cfg),
        **task,
        # Both names: transformers 4 reads torch_dtype, transformers 5 reads dtype.
        "dtype": dtype,
        "torch_dtype": dtype,
    }
