"""One page about a finished run: scores, curves, per-class table, confusion matrix, config. No script, one file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft import atomic, pages

TEMPLATE = Path(__file__).with_name("report.html.j2")

# Bookkeeping of the log; a curve of these says nothing, or cannot be drawn.
NOT_DRAWN = (
    "step",
    "time",
    "seconds_left",
    "bad_streak",
    "skipped_examples",
    "spike_loss",
    "spike_examples",
    "spike_step",
)
GOODPUT = "goodput/"  # how the names of shares of the time begin; the page shows the last ones in a table
# Noise of a speed would look like drama if its axis began at the slowest step.
FROM_ZERO = ("tokens_per_second", "examples_per_second", "mfu", "step_seconds", "step_seconds_max")
# Curves stay readable, and the page small, however long the run.
MOST_POINTS = 800
# A larger matrix is unreadable as a picture; report.json holds it.
MOST_CLASSES = 64
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 220, 56, 24  # one chart, in SVG units


@dataclass(frozen=True)
class Curve:
    """One line of a chart: SVG paths (several where values that are not finite leave gaps) and the last value."""

    name: str
    paths: list[str]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over steps with their axes: ticks are (position, label)."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def render(
    folder: str | Path, *, config: Mapping[str, Any], history: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> Path:
    """Writes `folder/report.html` and returns its path.

    `history` holds the records of metrics.jsonl. `results` holds scores; where the task has classes also "classes"
    (list of label, precision, recall, f1, support), averages such as "macro", and "confusion" (rows truth, columns
    predicted); where texts were written "written" (list of source, reference, text) and "signatures" of the scores.
    """
    folder = Path(folder)
    classes, matrix = results.get("classes", []), results.get("confusion", [])
    page = pages.page(
        TEMPLATE,
        {"number": number},
        title=folder.resolve().name,
        scores={name: value for name, value in results.items() if isinstance(value, (int, float))},
        classes=classes,
        averages={name: value for name, value in results.items() if isinstance(value, Mapping) and "f1" in value},
        matrix=shares(matrix) if 0 < len(matrix) <= MOST_CLASSES else [],
        confused=most_confused(matrix, [row["label"] for row in classes]),
        charts=charts(history),
        time=goodput(history),
        written=results.get("written", []),
        signatures=results.get("signatures", {}),
        config=sections(config),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    path = folder / "report.html"
    atomic.write(path, page)
    return path


def number(value: float) -> str:
    """Short and exact enough for a reader: 0.9134, 12,345, 2.00e-05, nan."""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def sections(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Section -> (key, value) rows; nested keys are joined by dots, plain keys at the top stand under ''."""
    table: dict[str, list[tuple[str, str]]] = {"": []}
    for key, value in config.items():
        if isinstance(value, Mapping):
            table[key] = list(_flat(value, ""))
        else:
            table[""].append((key, str(value)))
    return {section: rows for section, rows in table.items() if rows}


def _flat(section: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def shares(matrix: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Each count with its share of the row, which is the share of that true class."""
    return [[(count, count / max(1, sum(row))) for count in row] for row in matrix]


def most_confused(matrix: Sequence[Sequence[int]], labels: Sequence[str], top: int = 5) -> list[tuple[str, str, int]]:
    """The (truth, prediction, count) that went wrong most often."""
    pairs = [
        (labels[i], labels[j], count) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:top]


def goodput(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """(kind, share of all time) as last logged, the largest first, without what there was nothing of."""
    shares = next((record for record in reversed(history) if f"{GOODPUT}productive" in record), {})
    kinds = [(name.removeprefix(GOODPUT), share) for name, share in shares.items() if name.startswith(GOODPUT)]
    return sorted((row for row in kinds if row[1] >= 0.0005), key=lambda row: -row[1])


def charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One chart per quantity: "loss" and "validation/loss" share one. Loss comes first, then what was evaluated."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in history:
        for name, value in record.items():
            if name not in NOT_DRAWN and not name.startswith(GOODPUT):
                lines = series.setdefault(name.rpartition("/")[2], {})
                lines.setdefault(name, []).append((record["step"], float(value)))

    def rank(title: str) -> tuple[bool, bool, bool, str]:
        return title != "loss", not any("/" in name for name in series[title]), title != "lr", title

    return [_chart(title, series[title]) for title in sorted(series, key=rank)]


def _chart(title: str, lines: Mapping[str, list[tuple[int, float]]]) -> Chart:
    last = max(step for points in lines.values() for step, _ in points)
    finite = [value for points in lines.values() for _, value in points if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if title in FROM_ZERO:
        low = min(low, 0.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 8) * step / max(1, last), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 8) * (value - low) / (high - low), 1)

    def paths(points: list[tuple[int, float]]) -> list[str]:
        runs: list[list[str]] = [[]]
        for step, value in _thinned(points):
            if math.isfinite(value):
                runs[-1].append(f"{x(step)},{y(value)}")
            elif runs[-1]:
                runs.append([])
        return [" ".join(run) for run in runs if run]

    curves = [Curve(name, paths(points), number(points[-1][1])) for name, points in lines.items()]
    x_ticks = [(x(step), f"{step:,.0f}") for step in _ticks(0, max(1, last)) if step == int(step)]
    return Chart(title.replace("_", " "), curves, x_ticks, [(y(value), _label(value)) for value in _ticks(low, high)])


def _label(tick: float) -> str:
    return f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:.4g}"


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return points[:-1:stride] + points[-1:]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
