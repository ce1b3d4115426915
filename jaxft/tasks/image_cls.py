"""Classification of images: one of C classes for a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jaxft.registry import BadRow, UserError
from jaxft.tasks import Picture, labels
from jaxft.tasks.one_class import OneClass
from jaxft.tasks.text import Row, Splits, cell, require_columns, settle_metric


@dataclass(frozen=True, kw_only=True)
class ImageCls(OneClass):
    """image, label: column names; further the options of classes (one_class.py), and what training changes at random:

    crop: smallest share of an image's area that is kept, 1 = all of it; flip: half of the images are mirrored.
    """

    image: str
    crop: float
    flip: bool

    reads: ClassVar[str] = "image"
    columns: ClassVar[dict[str, str]] = {"image": "image", "label": "label"}  # where nothing else is said

    def __post_init__(self) -> None:
        settle_metric(self)
        self.check_options()
        if not self.image:
            raise UserError("task.image='' must name the column that holds the image")
        if not 0 < self.crop <= 1:
            raise UserError(f"task.crop={self.crop} must be above 0 and at most 1 (1: the whole image)")

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """As TextTask.check_columns."""
        require_columns(splits, [("image", self.image)] + [("label", self.label)] * labelled, option)

    def fit(self, splits: Splits, label_names: Mapping[str, Sequence[str]]) -> Self:
        """With the classes of the data. Raises UserError for a missing column, an empty split and a strange label."""
        self.check_columns(splits)
        return self.with_classes(splits, label_names)

    def example(self, row: Row, labelled: bool = True) -> Picture:
        """Raises BadRow for a label that cannot be used, and for what is no image; nothing is decoded here."""
        image = cell(row, self.image)
        if not isinstance(image, (str, bytes, np.ndarray)) or len(image) == 0:
            raise BadRow(
                f"{self.image!r} is {image!r}; an image is the name of a file, its bytes, or an array of uint8"
            )
        return Picture(image, self._names.id(cell(row, self.label)) if labelled else None)

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        image: str,
        label: str,
        smoothing: float = 0.0,
        crop: float = 1.0,
        flip: bool = False,
    ) -> Self:
        classes = labels.from_hf(config)
        return cls(image=image, label=label, metric="", smoothing=smoothing, crop=crop, flip=flip, classes=classes)
