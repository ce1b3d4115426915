"""Texts that become vectors: as groups.py, and an export that sentence-transformers opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxft.config import Config
from jaxft.hf import sentence
from jaxft.inputs import groups
from jaxft.registry import call
from jaxft.tasks import TASKS

placeholders = groups.placeholders
blank = groups.blank
prepare = groups.prepare


class Reader(groups.Reader):
    """As sentence-transformers reads a text: no more of it than the folder says, unless `length` does."""

    def __init__(self, folder: Path, length: int, task: Any):
        super().__init__(folder, length or sentence.max_length(folder), task)


def beside(config: Config, cfg: Any, folder: Path, hf_folder: Path | None) -> Callable[[Path], object]:
    """Writes the tokenizer of a run into an export, and how the vectors of tokens become one."""
    tokenizer, pooling = groups.beside(config, cfg, folder, hf_folder), call(TASKS, config.task, "task").pooling

    def write(target: Path) -> None:
        tokenizer(target)
        sentence.write(target, pooling=pooling, d_model=cfg.d_model, length=config.input.length)

    return write
