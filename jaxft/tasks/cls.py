"""Classification: one of C classes for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jaxft.tasks import Example, labels
from jaxft.tasks.one_class import OneClass
from jaxft.tasks.text import Row, Splits, TextTask, cell


@dataclass(frozen=True, kw_only=True)
class Cls(OneClass, TextTask):
    """The options of texts (text.py) and of classes (one_class.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """With the classes of the data. Raises UserError for a missing column, an empty split and a strange label."""
        self.check_columns(splits)
        return self.with_classes(splits, label_names)

    def example(self, row: Row, labelled: bool = True) -> Example:
        """Raises BadRow for a text or label that cannot be used."""
        text, pair = self.texts(row)
        return Example(text, pair, self._names.id(cell(row, self.label)) if labelled else None)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, text: str, pair: str, label: str, smoothing: float = 0.0) -> Self:
        classes = labels.from_hf(config)
        return cls(text=text, pair=pair, label=label, metric="", smoothing=smoothing, classes=classes)
