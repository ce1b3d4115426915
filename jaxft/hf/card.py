"""README.md of an exported model: what it is, what it was measured to do, how to load it."""

import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from jaxft import __version__

TEMPLATE = Path(__file__).with_name("card.md.j2")
TEXT = {"reader": "AutoTokenizer", "name": "tokenizer", "call": 'tokenizer("some text", return_tensors="pt")'}
QUESTION = {**TEXT, "call": 'tokenizer("a question", "its context", return_tensors="pt")'}
IMAGE = {
    "reader": "AutoImageProcessor",
    "name": "processor",
    "call": 'processor(Image.open("some.png"), return_tensors="pt")',
}
USES = {  # (is it of images, head) -> its name on the hub, the classes that open the folder, and how they are called
    (False, "sequence"): {"pipeline": "text-classification", "model": "AutoModelForSequenceClassification", **TEXT},
    (False, "masked_lm"): {"pipeline": "fill-mask", "model": "AutoModelForMaskedLM", **TEXT},
    (False, "causal_lm"): {"pipeline": "text-generation", "model": "AutoModelForCausalLM", **TEXT},
    (False, "seq2seq_lm"): {"pipeline": "text2text-generation", "model": "AutoModelForSeq2SeqLM", **TEXT},
    # The hub has no name for it; what such a model is for is to be fine-tuned.
    (False, "detection"): {"pipeline": "feature-extraction", "model": "AutoModelForPreTraining", **TEXT},
    (False, "span"): {"pipeline": "question-answering", "model": "AutoModelForQuestionAnswering", **QUESTION},
    (False, "multiple_choice"): {
        "pipeline": "multiple-choice",
        "model": "AutoModelForMultipleChoice",
        **TEXT,
        "call": '{k: v[None] for k, v in tokenizer(["a question"] * 2, ["one answer", "another answer"], '
        'padding=True, return_tensors="pt").items()}',
    },
    (False, "token"): {"pipeline": "token-classification", "model": "AutoModelForTokenClassification", **TEXT},
    (False, "vectors"): {"pipeline": "sentence-similarity", "model": "AutoModel", **TEXT},
    (True, "sequence"): {"pipeline": "image-classification", "model": "AutoModelForImageClassification", **IMAGE},
}
LIBRARIES = ("jax", "flax", "optax", "tokenizers")


def model_card(
    *,
    name: str,
    base_model: str,
    head: str,
    images: bool,
    labels: Mapping[str, str],
    dataset: str,
    split: str,
    results: Mapping[str, float],
    config: Mapping[str, Any],
    measured_in: str,
    dtype: str,
    library: str = "",
) -> str:
    """The model card as Markdown with YAML front matter, in the form that the hub reads (model-index included).

    `base_model` is a hub id, a folder, or "" for a model trained from scratch; `labels` are its id2label, empty where
    it has none; `results` are the scores measured on `split` of `dataset` with weights in `measured_in`, while the
    folder holds them in `dtype`; `config` is the resolved config of the run, shown without the places of local files.
    `library`: "peft" or "adapters", where the folder holds only what was added to `base_model`.
    No licence is stated: that is for whoever publishes the model to decide.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        base_model=base_model,
        base_on_hub=bool(base_model) and not _is_local(base_model),
        labels=[_cell(labels[key]) for key in sorted(labels, key=int)],
        dataset=dataset,
        split=split,
        results={metric: float(value) for metric, value in results.items()},
        # What is not a number is shown below, but not claimed to the hub.
        measured={metric: float(value) for metric, value in results.items() if math.isfinite(value)},
        # float32 holds every number of the two shorter types.
        rounded=dtype not in ("float32", measured_in),
        measured_in=measured_in,
        dtype=dtype,
        library=library,
        settings=[(key, _cell(_public(key, value))) for key, value in _flat(config)],
        use=USES[images, head],
        libraries={"jaxft": __version__, **{library: metadata.version(library) for library in LIBRARIES}},
    )


def dataset_name(data: Mapping[str, Any], split: str) -> str:
    """What a reader calls the data of a config's `data` section: a TFDS builder, the split's file, or its name."""
    # A split that has no file of its own was held out of the training file.
    file = data.get(split) or data.get("train", "")
    return str(data.get("builder") or Path(file).name or data["name"])


def _is_local(text: str) -> bool:
    """Whether `text` names a file or folder of this machine rather than something on the hub."""
    return text.startswith(("/", ".", "~")) or Path(text).exists()


def _public(key: str, value: Any) -> str:
    """`value` as text. Of a local path the last part: its place means nothing to a reader, and may say too much."""
    if not isinstance(value, str) or not value:
        return str(value)
    is_place = key.startswith("data.") and key != "data.builder"
    return (Path(value).name if is_place or _is_local(value) else "") or value


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
