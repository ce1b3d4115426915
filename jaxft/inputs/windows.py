"""Questions with contexts of any length: as text.py, a row's context in as many windows as it needs."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import Config
from jaxft.hf import windows
from jaxft.inputs import text
from jaxft.inputs.base import Say
from jaxft.metrics import spans

placeholders = text.placeholders
beside = text.beside
blank = functools.partial(text.blank, tags=True, chars=True)


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> text.TextInputs:
    """As text.prepare; says what of the data is not as it might seem."""
    options = config.task

    def encode(encoder: Any, texts: list[Any], length: int) -> Sequence[Any]:
        return windows.encode(encoder, texts, length, question=options["question_length"], stride=options["stride"])

    made = text.prepare(config, cfg, folder, hf_folder, say, encode)
    for name, held in made.caches.items():
        say(f"{name}: {_told(held)}")
    return made


def _told(held: Any) -> str:
    """What is to be known of a split's questions, in words."""
    counts = held.counts
    said = [
        f"{counts['long']:,} questions about contexts longer than a row, {len(held.row):,} windows of all",
        f"{counts['cut']:,} questions cut" if counts["cut"] else "",
        f"{counts['missed']:,} answers in no window, learnt as none" if counts["missed"] else "",
        f"{counts['moved']:,} answers not where the row says, the nearest place taken" if counts["moved"] else "",
    ]
    return "; ".join(filter(None, said))


class Reader(text.Reader):
    """The tokenizer of a hub folder, given questions and contexts. `length`: tokens of a window (0: as trained)."""

    most = 1024  # questions to hold at once: each may have many windows

    def encode(self, texts: list[tuple[Any, str | None]]) -> Sequence[Any]:
        task = self._task
        return windows.encode(
            self._encoder,
            [(q, c or "") for q, c in texts],
            self._length,
            question=task.question_length,
            stride=task.stride,
        )

    def gathered(
        self, examples: Sequence[Any], outputs: int, computed: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]]
    ) -> list[spans.Found]:
        """What was found of each of `examples`, over all of its windows."""
        found = [spans.Found(self._task.answer_length, self._task.nbest) for _ in examples]
        for batch, logits_BLC in computed:
            for row, logits_T2, chars_T2 in spans.windows(batch, logits_BLC):
                found[row].add(logits_T2, chars_T2)
        return found
