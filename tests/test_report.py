import math
from html.parser import HTMLParser

import pytest

from jaxft import report

CLASSES = [
    {"label": "plain", "precision": 0.9, "recall": 0.8, "f1": 0.847, "support": 10},
    {"label": "<script>alert(1)</script>", "precision": 0.5, "recall": 0.6, "f1": 0.545, "support": 5},
]
RESULTS = {
    "accuracy": 0.7333,
    "loss": math.nan,
    "macro": {"precision": 0.7, "recall": 0.7, "f1": 0.696, "support": 15},
    "classes": CLASSES,
    "confusion": [[8, 2], [2, 3]],
}
HISTORY = [
    {"step": 1, "time": 1.0, "loss": 2.0, "lr": 1e-3},
    {"step": 2, "time": 2.0, "loss": "NaN", "lr": 5e-4, "seconds_left": 9.0},
    {"step": 3, "time": 3.0, "loss": 1.0, "lr": 0.0},
    {"step": 4, "time": 3.5, "loss": 0.5, "lr": 0.0},
    {"step": 4, "time": 4.0, "validation/loss": 1.5, "validation/accuracy": 0.7},
]
CONFIG = {"seed": 7, "optim": {"name": "adamw", "lr": 2e-5}, "model": {"hf": "a<b", "config": {"layers": 2}}}


class Page(HTMLParser):
    """Collects elements and checks that what is opened is closed."""

    VOID = ("meta", "line", "polyline", "circle", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def render(tmp_path, results=RESULTS, history=HISTORY, config=CONFIG) -> Page:
    path = report.render(tmp_path / "run", config=config, history=history, results=results)
    assert path == tmp_path / "run" / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def run_folder(tmp_path):
    (tmp_path / "run").mkdir()


def test_the_page_shows_scores_classes_confusion_and_config(tmp_path):
    page = render(tmp_path)
    for text in ("0.7333", "nan", "macro average", "0.847", "layers", "2e-05", "taken for plain (2)"):
        assert text in page.text, text
    counts = [attributes for tag, attributes in page.elements if tag == "td" and "title" in attributes]
    assert len(counts) == 4


def test_the_page_is_self_contained_and_escapes_what_it_is_given(tmp_path):
    page = render(tmp_path)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe"})
    assert not [attributes for _, attributes in page.elements if {"src", "href"} & attributes.keys()]
    assert "<script>alert(1)</script>" in page.text and "a<b" in page.text


def test_values_that_are_not_finite_leave_a_gap_in_the_curve(tmp_path):
    chart = report.charts(HISTORY)[0]
    assert chart.title == "loss"
    assert [curve.name for curve in chart.curves] == ["loss", "validation/loss"]
    assert [len(path.split()) for path in chart.curves[0].paths] == [1, 2]
    assert chart.curves[0].last == "0.5"


def test_evaluated_quantities_come_before_the_rest_and_bookkeeping_is_left_out():
    assert [chart.title for chart in report.charts(HISTORY)] == ["loss", "accuracy", "lr"]


def test_the_time_is_a_table_of_the_last_shares_and_no_curve(tmp_path):
    first = {"step": 1, "loss": 2.0, "goodput/productive": 0.1, "goodput/startup": 0.9, "goodput/lost": 0.0}
    last = {"step": 2, "loss": 1.0, "goodput/productive": 0.75, "goodput/startup": 0.25, "goodput/lost": 0.0}
    events = [{"step": 2, "spike_loss": 9.0, "spike_examples": ["x.tsv:3"], "spike_step": 3}]
    assert report.goodput([first, last, *events]) == [("productive", 0.75), ("startup", 0.25)]
    assert [chart.title for chart in report.charts([first, last, *events])] == ["loss"]
    assert "75.0 %" in render(tmp_path, history=[first, last, *events]).text
    assert "Where the time went" not in render(tmp_path).text


def test_points_lie_inside_the_chart_and_the_lowest_loss_is_lowest():
    history = [{"step": step, "loss": math.cos(step / 50) * 1e-3} for step in range(1, 5001)]
    history.append({"step": 7, "skipped_examples": ["x.tsv:3"]})  # no number: nothing to draw
    (chart,) = report.charts(history)
    points = [tuple(map(float, point.split(","))) for path in chart.curves[0].paths for point in path.split()]
    assert len(points) <= report.MOST_POINTS + 1
    assert all(report.LEFT <= x <= report.WIDTH and 0 <= y <= report.HEIGHT - report.BOTTOM for x, y in points)
    assert points[-1][0] == max(x for x, _ in points)
    assert 3 <= len(chart.y_ticks) <= 6 and 3 <= len(chart.x_ticks) <= 6


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, math.nan])
def test_a_constant_curve_has_axes(value):
    (chart,) = report.charts([{"step": 1, "loss": value}, {"step": 2, "loss": value}])
    assert chart.y_ticks


def test_a_task_without_classes_has_no_empty_tables(tmp_path):
    page = render(tmp_path, results={"pearson": 0.9, "spearman": 0.89}, history=[])
    assert "Confusion" not in page.text and "Classes" not in page.text and "Curves" not in page.text
    assert "pearson" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (0.91342, "0.9134"), (2e-5, "2.00e-05"), (1234.5, "1,234"), (math.nan, "nan"), (0.0, "0")],
)
def test_numbers_read_well(value, text):
    assert report.number(value) == text
