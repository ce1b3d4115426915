"""Labels of any type as class names, and class names as transformers writes them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxft.registry import BadRow, UserError, nearest

UNLABELLED = "-100"  # how data sets of the hub mark what has no label; PyTorch's losses ignore it


def number(value: Any) -> float:
    """Raises BadRow for what is no finite number, or no text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise BadRow("label is empty" if value is None else f"label is a {type(value).__name__}, not a number")
    try:
        found = float(value)
    except ValueError as error:
        raise BadRow(f"label {value!r} is not a number") from error
    if not math.isfinite(found):
        raise BadRow(f"label is {found}")
    return found


class Names:
    """Class names that labels of any type are read by; () where they are not known yet.

    Text is a name as it is; whole numbers and bools become text ("3", "True"). Where names are known and none of them
    is a number, numbers are ids: 1 is the second name. So are bools, where no name is that of a bool.
    """

    def __init__(self, names: Sequence[str]):
        self.ids = {name: i for i, name in enumerate(names)}
        self.names = tuple(names)
        self._numbers_are_ids = bool(names) and not any(map(_is_whole, names))
        self._bools_are_names = not names or not self.ids.keys().isdisjoint(("True", "False"))

    def name(self, value: Any) -> str:
        """The name a label means, known or not. Raises BadRow for none, a fraction and an id of nothing."""
        if isinstance(value, str) and self._numbers_are_ids and _is_whole(value):
            value = int(value)
        if isinstance(value, str) and value.strip():
            return self._labelled(value)
        if value is None or isinstance(value, str):
            raise BadRow("label is empty")
        if isinstance(value, bool) and self._bools_are_names:
            return str(value)
        number = _whole(value)
        if not self._numbers_are_ids:
            return self._labelled(str(number))
        if not 0 <= number < len(self.names):
            raise BadRow(f"label is {number}, but classes have the ids 0 to {len(self.names) - 1}")
        return self.names[number]

    def _labelled(self, name: str) -> str:
        if name == UNLABELLED and name not in self.ids:
            raise BadRow(
                f"label is {UNLABELLED}, which marks a row without a label; name it in task.classes if it is one"
            )
        return name

    def id(self, value: Any) -> int:
        """Raises BadRow for a label that is no class."""
        name = self.name(value)
        if name not in self.ids:
            raise BadRow(f"label {name!r} is not one of the {len(self.names)} classes{nearest(name, self.names)}")
        return self.ids[name]


def _whole(value: Any) -> int:
    if not isinstance(value, (bool, int, float)):
        raise BadRow(f"label is a {type(value).__name__}")
    if not math.isfinite(value):
        raise BadRow(f"label is {value}")
    if value != int(value):
        raise BadRow(f"label is {value}, neither text nor whole; task.name='regression' predicts numbers")
    return int(value)


def _is_whole(name: str) -> bool:
    return len(name) < 20 and name.isascii() and name.removeprefix("-").isdigit()


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Whole numbers by value where all are, otherwise text by code point."""
    names = set(names)
    numbers = all(map(_is_whole, names))
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


def to_hf(classes: Sequence[str], problem: str = "") -> dict[str, Any]:
    """The fields of config.json. Keys are text, as JSON has them; num_labels follows from id2label in transformers.

    `problem` tells apart what else looks the same there; "": nothing does.
    """
    names = {
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    return names | ({"problem_type": problem} if problem else {})


def from_hf(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a config.json by id. Raises UserError unless ids count from 0 and names differ."""
    by_id = {str(key): str(name) for key, name in config["id2label"].items()}
    ids = [str(i) for i in range(len(by_id))]
    if set(ids) != set(by_id):
        raise UserError(
            f"config.json: id2label has the ids {', '.join(sorted(by_id))}; they must be 0 to {len(by_id) - 1}"
        )
    classes = tuple(by_id[i] for i in ids)
    check_distinct(classes, "config.json: id2label")
    return classes


def check_distinct(classes: Sequence[str], field: str) -> None:
    """Raises UserError for a name that stands for two classes."""
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise UserError(f"{field} gives more than one class the name {', '.join(map(repr, twice))}")
