"""What notebooks call: a run from a config, its curves, its report. `python -m jaxft.main` does the same in a shell."""

import html
import json
from pathlib import Path
from typing import Any

from jaxft import remote
from jaxft.config import parse
from jaxft.start import start


def train(config: Any, workdir: str | Path, *, allow_change: tuple[str, ...] = ()) -> str | Path:
    """Trains as `config` (a ConfigDict, of some get_config()) says, in `workdir`, which is returned.

    A run that was interrupted goes on where it was saved, and one that is finished is left as it is. Raises UserError
    for what the user can mend, and Stopped after an interrupt, when the step is finished and saved.
    """
    raw = config.to_dict()
    start(raw, parse(raw), remote.place(workdir), allow_change, print)
    return remote.place(workdir)


def curve(run: str | Path, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a number of metrics.jsonl: "loss", "validation/loss", "lr", ..."""
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(record["step"], float(record[name])) for record in map(json.loads, lines) if name in record]
    return [step for step, _ in found], [value for _, value in found]


def report(run: str | Path, *, height: int = 600) -> Any:
    """report.html of a finished run, to be shown: in a frame, so that its style stays its own."""
    from IPython.display import HTML

    page = html.escape((Path(run) / "report.html").read_text(encoding="utf-8"))
    return HTML(f'<iframe srcdoc="{page}" style="width: 100%; height: {height}px; border: 0"></iframe>')
