"""What tasks share that have no classes: nothing is learned of the labels, and config.json has no field for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxft.tasks.text import Splits


class Classless(ABC):
    @abstractmethod
    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns."""

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """This task. Raises UserError for a missing column and an empty split."""
        self.check_columns(splits)
        return self

    def hf_config(self) -> dict[str, Any]:
        return {}
