"""README.md of an exported model: what it is, what it was measured to do, how to load it."""

import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from jaxft import __version__

TEMPLATE = Path(__file__).with_name("card.md.j2")
LIBRARIES = ("jax", "flax", "optax", "tokenizers")


def model_card(
    *,
    name: str,
    base_model: str,
    task: Any,
    dataset: str,
    split: str,
    results: Mapping[str, float],
    config: Mapping[str, Any],
    architecture: str = "AutoModelForSequenceClassification",
) -> str:
    """The model card as Markdown with YAML front matter, in the form that the hub reads (model-index included).

    `base_model` is a hub id, a folder, or "" for a model trained from scratch; `task` gives the labels (`hf_config`);
    `results` are the scores measured on `split` of `dataset`; `config` is the resolved config of the run.
    No licence is stated: that is for whoever publishes the model to decide.
    """
    labels = task.hf_config()["id2label"]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        base_model=base_model,
        # A local folder means nothing to a reader on the hub, and its path may say too much.
        base_on_hub=bool(base_model)
        and not Path(base_model).expanduser().exists()
        and not base_model.startswith(("/", ".", "~")),
        labels=[_cell(labels[key]) for key in sorted(labels, key=int)],
        dataset=dataset,
        split=split,
        results={metric: float(value) for metric, value in results.items()},
        # What is not a number is shown below, but not claimed to the hub.
        measured={metric: float(value) for metric, value in results.items() if math.isfinite(value)},
        settings=[(key, _cell(str(value))) for key, value in _flat(config) if key not in ("model.hf", "workdir")],
        architecture=architecture,
        libraries={"jaxft": __version__, **{library: metadata.version(library) for library in LIBRARIES}},
    )


def _flat(config: Mapping[str, Any], parent: str = "") -> list[tuple[str, Any]]:
    """[("optim.lr", 2e-5), ...], in the config's order."""
    flat = []
    for key, value in config.items():
        path = f"{parent}{key}"
        flat += _flat(value, path + ".") if isinstance(value, Mapping) and value else [(path, value)]
    return flat


def _cell(text: str) -> str:
    """`text` for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
