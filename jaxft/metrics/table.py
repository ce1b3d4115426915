"""Reports as plain aligned text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FULL = 20  # up to so many classes, every class and the whole confusion matrix are shown
LABEL = 28  # columns of the terminal that a label may take
WIDTH = 100  # a confusion matrix wider than this gets numbers for column heads


def classification(report: Mapping[str, Any], averages: Sequence[str], scores: Sequence[str]) -> str:
    """Per class precision, recall, F1 and support, then the named averages, then single scores.

    Of more than FULL classes, the FULL with the lowest F1.
    """
    heads = ("precision", "recall", "f1", "support")
    rows = report["classes"]
    shown = rows if len(rows) <= FULL else sorted(rows, key=lambda row: row["f1"])[:FULL]
    width = _label_width([*(row["label"] for row in shown), *averages, *scores])

    def line(label: str, values: Mapping[str, Any]) -> str:
        return f"  {_fit(label, width)}" + "".join(f"{_number(values[head]):>11}" for head in heads)

    lines = [" " * (width + 2) + "".join(f"{head:>11}" for head in heads)]
    lines += [line(row["label"], row) for row in shown]
    if len(shown) < len(rows):
        lines.append(f"  and {len(rows) - len(shown)} more classes with f1 of {shown[-1]['f1']:.3f} or above")
    lines += ["", *(line(average, report[average]) for average in averages), ""]
    # Single scores stand in the f1 column, the third.
    lines += [f"  {_fit(score, width)}{_number(report[score]):>33}" for score in scores]
    return "\n".join(lines)


def confusion(counts_CC: np.ndarray, labels: Sequence[str]) -> str:
    """The confusion matrix, or of more than FULL classes the pairs most often confused."""
    if len(labels) > FULL:
        return _confused_pairs(counts_CC, labels)
    width, digits = _label_width(labels), len(str(int(counts_CC.max())))
    heads = [_fit(label, min(_cells(label), LABEL // 2)) for label in labels]
    column = max(digits, *map(_cells, heads)) + 2
    numbered = width + 2 + column * len(labels) > WIDTH
    names = list(labels)
    if numbered:
        heads = [str(i) for i in range(len(labels))]
        names = [f"{i:>2} {label}" for i, label in enumerate(labels)]
        width, column = _label_width(names), max(digits, 2) + 2
    lines = ["confusion matrix (rows: true, columns: predicted)", ""]
    lines.append(" " * (width + 2) + "".join(_right(head, column) for head in heads))
    for name, counts_C in zip(names, counts_CC, strict=True):
        # Zeros as dots: what was confused stands out.
        lines.append(f"  {_fit(name, width)}" + "".join(f"{int(count) or '.':>{column}}" for count in counts_C))
    return "\n".join(lines)


def _confused_pairs(counts_CC: np.ndarray, labels: Sequence[str], most: int = 15) -> str:
    wrong_CC = counts_CC * (1 - np.eye(len(labels), dtype=counts_CC.dtype))
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:most]
    pairs = [(int(i) // len(labels), int(i) % len(labels)) for i in order if wrong_CC.flat[i]]
    if not pairs:
        return "no class was confused with another"
    width = _label_width(["predicted", *(labels[i] for pair in pairs for i in pair)])
    lines = ["most often confused", ""]
    lines.append(f"  {_fit('true', width)}  {_fit('predicted', width)}{'count':>9}{'of true class':>16}")
    for truth, predicted in pairs:
        count, support = int(wrong_CC[truth, predicted]), int(counts_CC[truth].sum())
        lines.append(
            f"  {_fit(labels[truth], width)}  {_fit(labels[predicted], width)}{count:>9,}{count / support:>16.1%}"
        )
    return "\n".join(lines)


def scores(values: Mapping[str, Any]) -> str:
    """One `name value` a line, aligned."""
    width = _label_width(list(values))
    return "\n".join(f"  {_fit(name, width)}{_number(value):>12}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _label_width(labels: Sequence[str]) -> int:
    return min(LABEL, max(map(_cells, labels)))


def _cells(text: str) -> int:
    """Terminal columns: two for wide (CJK) characters."""
    from rich.cells import cell_len

    return cell_len(one_line(text))


def _fit(text: str, width: int) -> str:
    """`text` padded, or cut with an ellipsis, to `width` terminal columns."""
    from rich.cells import set_cell_size

    text = one_line(text)
    return set_cell_size(text, width) if _cells(text) <= width else set_cell_size(text, width - 1) + "…"


def _right(text: str, width: int) -> str:
    return " " * (width - _cells(text)) + text


def one_line(text: str) -> str:
    """Control characters, line ends among them, would break the table (or drive the terminal): shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
