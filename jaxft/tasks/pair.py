"""Classification of sentence pairs."""

from dataclasses import dataclass

from jaxft.registry import UserError
from jaxft.tasks.cls import Cls


@dataclass(frozen=True, kw_only=True)
class Pair(Cls):
    """As Cls, with a second text in every row: entailment, paraphrase, question and answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pair:
            raise UserError(
                "task.pair='' must name the column of the second text; for single texts set task.name='cls'"
            )
