"""How far a run is: a bar on a terminal or in a notebook, elsewhere (a file, a pipe, a CI log) a line a record."""

import html
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

REDRAWN = 0.5  # seconds between two pictures of a notebook's bar


def progress(total: int, start: int) -> Any:
    """A context with advance(step) and update(step, metrics), of a run that goes on from `start` of `total` steps."""
    if in_notebook():
        return NotebookBar(total, start)
    from rich.console import Console

    console = Console()
    return TerminalBar(console, total, start) if console.is_terminal else Lines(total)


def in_notebook() -> bool:
    """Whether this process is the kernel of one: then IPython runs, and not in a terminal."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ in ("ZMQInteractiveShell", "Shell")  # Shell: Colab


class Lines:
    def __init__(self, total: int):
        self._total = total

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        print(f"step {step:,} of {self._total:,}: {describe(metrics)}{_left(metrics)}", flush=True)


class TerminalBar:
    def __init__(self, console: Any, total: int, start: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        columns = (BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(compact=True), text)
        self._bar = Progress(*columns, console=console, refresh_per_second=4, expand=True)
        self._task = self._bar.add_task("", total=total, completed=start, text="")

    def __enter__(self) -> "TerminalBar":
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step, text=describe(metrics))


class NotebookBar:
    """One output that is drawn again and again, in plain HTML: neither widgets nor scripts, so that it can be kept."""

    def __init__(self, total: int, start: int):
        self._total, self._step, self._text, self._drawn = total, start, "", 0.0

    def __enter__(self) -> "NotebookBar":
        from IPython.display import HTML, display

        self._html = HTML
        self._shown: Any = display(HTML(self._page()), display_id=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._draw()

    def advance(self, step: int) -> None:
        self._step = step
        if time.monotonic() - self._drawn > REDRAWN:
            self._draw()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step, self._text = step, describe(metrics) + _left(metrics)
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._shown.update(self._html(self._page()))

    def _page(self) -> str:
        bar = f'<progress value="{self._step}" max="{self._total}"></progress>'
        return f"{bar} step {self._step:,} of {self._total:,}: {html.escape(self._text)}"


# What is shown, where it is known; everything else is in metrics.jsonl.
SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.4f}",
    "lr": lambda x: f"lr {x:.2e}",
    "examples_per_second": lambda x: f"{x:,.0f} examples/s",
    "tokens_per_second": lambda x: f"{x:,.0f} tokens/s",
    "mfu": lambda x: f"MFU {x:.1%}",
    "memory_peak_gib": lambda x: f"{x:.1f} GiB",
    "accuracy": lambda x: f"accuracy {x:.3f}",
}


def describe(metrics: Mapping[str, float]) -> str:
    return ", ".join(show(metrics[name]) for name, show in SHOWN.items() if name in metrics)


def _left(metrics: Mapping[str, float]) -> str:
    if "seconds_left" not in metrics:
        return ""
    minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours}:{minutes:02d}:{seconds:02d} left"
