"""Several texts a row of the data, such as the choices of a question: examples that share a row and are compared."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import Config
from jaxft.data import blanks, pack, tokens
from jaxft.data.pipeline import WHOLE, Batch, assemble, eval_batches
from jaxft.hf.tokenizer import TextEncoder
from jaxft.inputs import text
from jaxft.inputs.base import Say, read

placeholders = text.placeholders
beside = text.beside


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> text.TextInputs:
    """As text.prepare. `input.length` is the most tokens of a text; `input.pack` the most groups that share a row.

    A row has room for the largest group.
    """
    length = text.checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    encoder = text.encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)

    def cache_of(split: Any) -> Any:
        return text.cache_of(task, encoder, TextEncoder.encode, split, length, config.input.on_bad)

    caches, made = text.packed(config, dataset, cache_of, say, plans_of=plans, pieces="groups")
    longest = row_length(length, caches)
    say(f"rows of {longest} tokens, with room for {longest // length} texts of {length} each")
    return text.TextInputs(task, hf_folder, dataset.splits, caches, encoder, longest, made)


def blank(config: Config, cfg: Any, task: Any, *, tags: bool = False) -> Batch:
    """As text.blank, of as many texts as the task compares."""
    held = blanks.cache([text.checked_length(config, cfg)] * task.compared, None if tags else task.blank, tags=tags)
    made = plans(config, {"": held})[""]
    return assemble(held, made, np.zeros(1, np.int64), row_length(config.input.length, {"": held}))


def row_length(length: int, caches: Mapping[str, Any]) -> int:
    """Tokens of a row with room for the largest group, of texts of `length` tokens."""
    return length * max(int(np.diff(held.begins).max()) for held in caches.values())


def plans(config: Config, caches: dict[str, Any]) -> dict[str, Any]:
    """As those of text.prepare; a group stays together."""
    shape = dict(row_length=row_length(config.input.length, caches), max_groups=config.input.pack, seed=config.seed)
    return {name: pack.plan_groups(held.lengths, held.begins, **shape) for name, held in caches.items()}


class Reader(text.Reader):
    """The tokenizer of a hub folder, for rows of several texts. `length`: the most tokens of one (0: as trained)."""

    def batches(self, examples: Sequence[Any], places: Sequence[str], rows: int) -> Iterator[Batch]:
        held = tokens.in_memory(examples, self.encode)
        held.check_ids(self._cfg.vocab, self._cfg.types, places.__getitem__)
        length = row_length(self._length, {"": held})
        groups = max(1, self._length // 8)
        plan = pack.plan_groups(held.lengths, held.begins, row_length=length, max_groups=groups, seed=0)
        return eval_batches(held, plan, batch=rows, row_length=length, share=WHOLE)

    def gathered(
        self, examples: Sequence[Any], outputs: int, computed: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]]
    ) -> list[np.ndarray]:
        """[texts, outputs] of each of `examples`."""
        out: list[list[Any]] = [[None] * len(group) for group in examples]
        for batch, logits_BSC in computed:
            for row, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
                out[batch["group"][row, slot]][batch["part"][row, slot]] = logits_BSC[row, slot]
        return [np.stack(group) for group in out]
