"""Reports for the terminal."""

import numpy as np
from rich.cells import cell_len

from jaxft.metrics import table
from jaxft.metrics.meters import ClassMeter, MultilabelMeter, RegressionMeter


def metered(classes, n=400, noise=1.0):
    rng = np.random.default_rng(0)
    labels_X = rng.integers(0, len(classes), n)
    logits_XC = np.eye(len(classes))[labels_X] * 2 + rng.normal(size=(n, len(classes))) * noise
    meter = ClassMeter(tuple(classes))
    meter.add(logits_XC.astype(np.float32), labels_X, 1.0, float(n))
    return meter


def block(text, start):
    """The lines of the table after the line that begins with `start`, up to an empty one."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith(start))
    return lines[first : lines.index("", first) if "" in lines[first:] else None]


def test_two_classes_in_full():
    meter = ClassMeter(("negative", "positive"))
    meter.add(np.eye(2, dtype=np.float32)[[0, 0, 1, 1, 1]], np.array([0, 0, 1, 1, 0]), 1.0, 5.0)
    assert meter.table() == "\n".join(
        [
            "            precision     recall         f1    support",
            "  negative     1.0000     0.6667     0.8000          3",
            "  positive     0.6667     1.0000     0.8000          2",
            "",
            "  macro        0.8333     0.8333     0.8000          5",
            "  weighted     0.8667     0.8000     0.8000          5",
            "",
            "  accuracy                           0.8000",
            "  mcc                                0.6667",
            "",
            "confusion matrix (rows: true, columns: predicted)",
            "",
            "            negative  positive",
            "  negative         2         1",
            "  positive         .         2",
        ]
    )


def test_every_line_of_a_block_is_equally_wide_whatever_the_names():
    text = metered(["短い", "a" * 60, "line\nbreak", "\x1b[31mred"]).table()
    assert "\x1b" not in text and "line\\nbreak" in text
    widths = {cell_len(line) for line in block(text, "precision")}
    assert len(widths) == 1
    assert "aaa…" in text


def test_a_wide_matrix_numbers_its_columns_and_fits_a_terminal():
    text = metered([f"a library called {i}" for i in range(20)]).table()
    assert max(map(len, text.splitlines())) <= 120
    assert "19 a library called 19" in text


def test_many_classes_show_the_worst_and_the_most_confused():
    classes = [f"class {i}" for i in range(60)]
    meter = metered(classes, n=3000)
    text = meter.table()
    assert len(text.splitlines()) < 60 and "and 40 more classes with f1 of" in text
    wrong_CC = meter.counts_CC * (1 - np.eye(60, dtype=int))
    truth, predicted = np.unravel_index(wrong_CC.argmax(), wrong_CC.shape)
    first = block(text, "true")[1].split()
    assert first[:4] == ["class", str(truth), "class", str(predicted)] and int(first[4]) == wrong_CC.max()


def test_many_classes_without_a_mistake():
    assert "no class was confused" in table.confusion(np.eye(30, dtype=np.int64), [str(i) for i in range(30)])


def test_other_meters_print_too():
    multilabel = MultilabelMeter(("x", "y"), 0.5)
    multilabel.add(np.array([[1.0, -1.0]]), np.array([[1.0, 1.0]]), 0.0, 1.0)
    assert "micro" in multilabel.table() and "y " in multilabel.table()
    regression = RegressionMeter()
    regression.add(np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), 0.0, 2.0)
    assert "  spearman      1.0000" in regression.table()
