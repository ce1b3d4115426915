"""What all tasks over one text or a pair of texts share: columns, texts, the walk over splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxft.registry import BadRow, UserError, nearest
from jaxft.tasks.labels import Names, in_order
from jaxft.tasks.whole import Whole

Row = Mapping[str, Any]
Splits = Mapping[str, Any]  # split name -> data.source.Split: rows, where(i)
ReadNames = Callable[[Row], list[str]]  # the class names of a row; raises BadRow
SHOWN = 5  # places listed in a message


@dataclass(frozen=True, kw_only=True)
class TextTask(Whole):
    """text, pair, label: column names (pair "": one text a row). metric: the score that picks the best checkpoint."""

    text: str
    pair: str
    label: str
    metric: str  # "" = the task's own

    reads: ClassVar[str] = "text"
    columns: ClassVar[dict[str, str]] = {"text": "text", "pair": "", "label": "label"}  # where nothing else is said
    metrics: ClassVar[tuple[str, ...]]  # what may be chosen as `metric`; the first is the task's own

    def __post_init__(self) -> None:
        settle_metric(self)
        if not self.text:
            raise UserError("task.text='' must name the column that holds the text")

    @property
    def label_columns(self) -> tuple[str, ...]:
        return (self.label,)

    def texts(self, row: Row) -> tuple[str, str | None]:
        """(text, pair or None) of a row. Raises BadRow for a missing, empty or non-text value."""
        return self._text(row, self.text), self._text(row, self.pair) if self.pair else None

    def _text(self, row: Row, column: str) -> str:
        return text_of(cell(row, column), repr(column))

    def check_columns(self, splits: Splits, *, labelled: bool = True, option: str = "task.") -> None:
        """Raises UserError for an empty split, and for a column that its first rows do not have.

        `option` is what the names of the columns' options begin with where the user sets them.
        """
        wanted = [("text", self.text)] + [("pair", self.pair)] * bool(self.pair)
        wanted += [("label", column) for column in self.label_columns] * labelled
        require_columns(splits, wanted, option)


def text_of(value: Any, what: str) -> str:
    """Raises BadRow for what is no text, or an empty one; `what` it is called there."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a column that was read as numbers, such as the titles 1984 and 2666
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{what} is a {type(value).__name__}, not text")
    if not value or not value.strip():
        raise BadRow(f"{what} is empty")
    return value


def text_at(row: Row, column: str) -> str:
    """The text of a column, or of a field in one. Raises BadRow for a missing, empty or non-text value."""
    name, _, field = column.partition(".")
    value = row[column] if column in row else cell(row, name)
    if column not in row and field:
        value = cell(value, field) if isinstance(value, Mapping) else None
    return text_of(value, repr(column))


def settle_metric(task: Any) -> None:
    """Fills in a task's own metric for "". Raises UserError for one that it does not have."""
    object.__setattr__(task, "metric", task.metric or task.metrics[0])
    if task.metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise UserError(
            f"task.metric={task.metric!r} is not known here; known: {known}{nearest(task.metric, task.metrics)}"
        )


def require_columns(splits: Splits, wanted: Iterable[tuple[str, str]], option: str) -> None:
    """Raises UserError for an empty split, and for a (option, column) whose column its first rows do not have."""
    for name, split in splits.items():
        if not len(split.rows):
            raise UserError(f"the {name} split is empty; check data.{name}, or leave it out")
        known = _columns(split)
        for which, column in wanted:
            if known and column not in known:
                raise UserError(
                    f"{option}{which}={column!r}: the {name} split has no such column; "
                    f"columns: {', '.join(known)}{nearest(column, known)}"
                )


def cell(row: Row, column: str) -> Any:
    """Raises BadRow where the row lacks the column."""
    if column not in row:
        raise BadRow(f"no column {column!r}")
    return row[column]


def good_rows(split: Any) -> Iterator[tuple[int, Row]]:
    """(index, row) of the rows that can be read; the token cache counts and reports the others."""
    for i in range(len(split.rows)):
        try:
            row = split.rows[i]
        except BadRow:
            continue
        yield i, row


def find_classes(splits: Splits, names: Names, read: ReadNames) -> tuple[tuple[str, ...], int]:
    """(classes, how many of them the train split has): `names` where they are known, else the train split's, in order.

    Raises UserError for a split without labels, for a label outside known names, and for one that another split has and
    the train split has not.
    """
    found = {name: labels_in(name, split, read) for name, split in splits.items()}
    train = found.pop("train")
    if names.names:
        _check_known("train", train, names.names, "are not among the known classes")
    for name, labels in found.items():
        _check_known(name, labels, train, "the train split never had")
    return names.names or in_order(train), len(train)


def labels_in(name: str, split: Any, read: ReadNames) -> dict[str, tuple[str, int]]:
    """Class name -> (place of the first row that has it, number of rows), over the split called `name`.

    Rows for which `read` raises BadRow are passed over; UserError when there is no other.
    """
    found: dict[str, tuple[str, int]] = {}
    usable, reason = False, "it cannot be read"
    for i, row in good_rows(split):
        try:
            names = read(row)
        except BadRow as error:
            reason = str(error)
            continue
        usable = True
        for label in names:
            place, rows = found[label] if label in found else (split.where(i), 0)
            found[label] = place, rows + 1
    if not usable:
        raise UserError(f"the {name} split has no usable label ({reason}); leave it out, or mend task.label")
    return found


def _check_known(name: str, found: Mapping[str, tuple[str, int]], known: Iterable[str], which: str) -> None:
    known = set(known)
    strange = [label for label in found if label not in known]
    if not strange:
        return
    listed = [f"{label!r} ({found[label][0]}, {_count(found[label][1], 'row')})" for label in strange[:SHOWN]]
    listed += [_count(len(strange) - SHOWN, "more label")] if len(strange) > SHOWN else []
    if strange == ["-1"]:
        fix = "; -1 stands for unlabelled: leave this split out"
    else:
        fix = nearest(strange[0], known) or "; mend these rows, or give the train split examples"
    raise UserError(f"the {name} split has labels that {which}: {', '.join(listed)}{fix}")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _columns(split: Any, sample: int = 100) -> list[str]:
    """Columns of the first rows, in order of appearance: rows of JSON lines may differ."""
    seen: dict[str, None] = {}
    for i, row in good_rows(split):
        if i >= sample:
            break
        seen |= dict.fromkeys(row)
    return list(seen)
