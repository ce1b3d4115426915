"""The folders of the `adapters` library (AdapterHub), and what it calls places in a network.

adapter_config.json        model_type, model_class, name, and under `config` how the adapters are made
adapter.safetensors        <module>.adapters.<name>.adapter_down.0.weight and the like; read with use_safetensors=True
head_config.json           of a head that was trained: model_class, and its labels
model_head.safetensors     the head, and what else trained whole, under their names in transformers
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.hf import adapters as files
from jaxft.hf import files as json_files
from jaxft.peft.exchange import Tensors
from jaxft.registry import UserError

NAME = "jaxft"  # of the adapter, in a library that keeps several in one network
VERSION = "adapters.1.3.0"  # whose format this is
WEIGHTS, HEAD_WEIGHTS, HEAD_CONFIG = "adapter.safetensors", "model_head.safetensors", "head_config.json"

# The end of a linear layer's name -> the module that has its adapters, of the families that the library knows.
_PLACES = (
    (r"(vit\..*)\.attention\.output\.dense", r"\1.attention_adapters"),
    (r"(vit\..*\.output)\.dense", r"\1.output_adapters"),
    (r"(.*\.output)\.dense", r"\1"),
    (r"(.*)\.(?:self_attn\.o(?:ut)?_proj|attn\.(?:c_proj|Wo)|attention\.out_lin)", r"\1.attention_adapters"),
    (r"(.*)\.encoder_attn\.out_proj", r"\1.cross_attention_adapters"),
    (r"(.*)\.(?:mlp\.(?:down_proj|c_proj|Wo)|fc2|ffn\.lin2)", r"\1.output_adapters"),
    (r"(.*)\.(?:SelfAttention\.o|EncDecAttention\.o|DenseReluDense\.wo)", r"\1"),
)

# Where each kind of bottleneck adapters stands, in the fields of its config; the kinds are named as by the library.
KINDS = {
    "double_seq_bn": {"mh_adapter": True, "output_adapter": True, "original_ln_before": False},
    "seq_bn": {
        "mh_adapter": False,
        "output_adapter": True,
        "cross_adapter": False,
        "original_ln_before": True,
        "residual_before_ln": True,
    },
}
# Options that change numbers, and the one value of each that is implemented; others have a place in methods.
FIXED = {
    "original_ln_after": True,
    "residual_before_ln": True,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "phm_layer": False,
    "use_gating": False,
    "stochastic_depth": 0.0,
    "inv_adapter": None,
    "leave_out": [],
    "scaling": 1.0,
}
# Heads of the library's own -> how the class of transformers ends that has the same; and what is between two layers.
HEAD_TYPES = {
    "classification": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
}
HEAD_ACTS = {"bert": "tanh", "roberta": "tanh", "xlm-roberta": "tanh", "distilbert": "relu", "electra": "gelu"}
_READ = ("scaling", "leave_out", "inv_adapter", "residual_before_ln")  # of those: what reading takes otherwise, too
_OPTIONAL = {"cross_adapter": False, "dropout": 0.0, "original_ln_before": False}  # the library's own defaults
_RENAMED = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # activations, in files of before there were versions


def place(linear: str, name: str = NAME) -> str:
    """What the tensors of the adapter `name` behind a linear layer begin with.

    Raises UserError for a layer that the library has no adapters behind.
    """
    for pattern, where in _PLACES:
        if found := re.fullmatch(pattern, linear):
            return f"{found.expand(where)}.adapters.{name}"
    raise UserError(f"the `adapters` library has no place for an adapter behind {linear}")


def factor(d_model: int, width: int) -> float:
    """The reduction_factor of which the library makes that width: d_model // factor."""
    exact = d_model / width
    return exact if int(d_model // exact) == width else d_model / (width + 0.5)


def options(section: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The options of an adapter_config.json, with what old files lack. Raises UserError for those not implemented."""
    own = section.get("config")
    have = own.get("architecture") if isinstance(own, Mapping) else own
    if not isinstance(own, Mapping) or have not in (None, "bottleneck"):
        raise UserError(
            f"{folder}: config.architecture={have!r} of the `adapters` library is not supported; only bottleneck "
            f"adapters are: {', '.join(sorted(KINDS))}"
        )
    found = {**FIXED, **_OPTIONAL, **own}
    for field, value in FIXED.items():
        if field not in _READ and found[field] != value:
            raise UserError(f"{folder}: config.{field}={found[field]!r} is not supported; only {value!r} is")
    for field in ("scaling", "dropout"):
        if not isinstance(found[field], int | float):
            raise UserError(f"{folder}: config.{field}={found[field]!r} is not supported; only a number is")
    if missing := [field for field in ("name", "non_linearity") if field not in {**section, **own}]:
        raise UserError(f"{folder}: adapter_config.json has no {', '.join(missing)}")
    act = str(found["non_linearity"]).lower()
    return found | {"non_linearity": act if "version" in section else _RENAMED.get(act, act)}


def kind(section: Mapping[str, Any], folder: str) -> str:
    """Which of KINDS it is. Raises UserError for adapters at other places."""
    found = options(section, folder)
    for name, places in KINDS.items():
        if all(found.get(field) == value for field, value in places.items()):
            return name
    fields = sorted({field for places in KINDS.values() for field in places})
    raise UserError(
        f"{folder}: adapters with {', '.join(f'{field}={found.get(field)!r}' for field in fields)} are not supported; "
        f"those of {' and '.join(KINDS)} are"
    )


def packed(
    fields: Mapping[str, Any],
    tensors: Tensors,
    wholes: Tensors,
    *,
    hf: Mapping[str, Any],
    base: str,
    d_model: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensors]]:
    """(configs by file name, tensors by file name) of an adapter of the model `base`; `hf` is its config.json."""
    common = {
        "model_type": hf["model_type"],
        "model_class": hf["architectures"][0],
        "model_name": base,
        "hidden_size": d_model,
        "version": VERSION,
    }
    configs, weights = {files.CONFIG: {**common, "name": NAME, **fields}}, {WEIGHTS: tensors}
    if wholes:
        labels = hf.get("label2id") or {"LABEL_0": 0, "LABEL_1": 1}  # as transformers has them where none are given
        # Without a config it is a head of transformers, under the names that it has there.
        head = {"name": None, "config": None, "label2id": labels, "num_labels": len(labels)}
        configs[HEAD_CONFIG], weights[HEAD_WEIGHTS] = {**common, **head}, wholes
    return configs, weights


def unpacked(folder: Path, prefix: str, head: Sequence[str], *, bare: bool) -> Tensors:
    """All tensors of a folder. Those of the trunk begin with `prefix`, as in a model with a head, or are `bare`.

    `head`: what transformers calls the linear layers of the network's head, in order.
    """
    tensors = {}
    for name, array in files.load(folder, WEIGHTS).items():
        plain = name.removeprefix(prefix)
        tensors[plain if bare else prefix + plain] = array
    if not (folder / HEAD_WEIGHTS).is_file():
        return tensors
    section, wholes = json_files.read_json(folder, HEAD_CONFIG), files.load(folder, HEAD_WEIGHTS)
    return tensors | (wholes if section.get("config") is None else _renamed(section, wholes, prefix, head, folder))


def _renamed(section: Mapping[str, Any], wholes: Tensors, prefix: str, head: Sequence[str], folder: Path) -> Tensors:
    """A head of the library's own, heads.<name>.<number>.weight, under the names of transformers.

    Where transformers has a pooler in its trunk, the library has it there or as a layer of the head.
    """
    own, act = section["config"], HEAD_ACTS.get(str(section.get("model_type")))
    start = f"heads.{section.get('name')}."
    numbers = sorted({int(name.removeprefix(start).split(".")[0]) for name in wholes if name.startswith(start)})
    pooled = bool(own.get("use_pooler")) and bool(head) and head[0].startswith(prefix)
    names = head[1:] if pooled else head
    alike = len(names) == 1 or own.get("activation_function") == act
    if own.get("head_type") not in HEAD_TYPES or len(numbers) != len(names) or not alike:
        raise UserError(
            f"{folder / HEAD_CONFIG}: a head {own.get('head_type')!r} of {len(numbers)} layers with "
            f"activation_function={own.get('activation_function')!r} is none of this model's; move {HEAD_WEIGHTS} away "
            "to begin with a new head"
        )
    by_number = dict(zip(numbers, names, strict=True))
    found = {}
    for name, array in wholes.items():
        number, _, kind = name.removeprefix(start).partition(".")
        found[f"{by_number[int(number)]}.{kind}" if name.startswith(start) else name] = array
    return found


def head_fields(folder: Path) -> dict[str, Any]:
    """The fields of a model's config.json that follow from a folder's head; none where it has no head."""
    if not (folder / HEAD_CONFIG).is_file():
        return {}
    section = json_files.read_json(folder, HEAD_CONFIG)
    own = section.get("config") or {}
    model_class = str(section.get("model_class"))
    if own:
        model_class = model_class.removesuffix("AdapterModel") + HEAD_TYPES.get(str(own.get("head_type")), "")
    found = {"architectures": [model_class]}
    if labels := section.get("label2id") or own.get("label2id"):
        found |= {"label2id": labels, "id2label": {str(i): label for label, i in labels.items()}}
    return found
