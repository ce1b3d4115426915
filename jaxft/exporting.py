"""What a run leaves in its hf/: an adapter as `peft` or `adapters` has it (peft/adapterhub.py), or the whole network.

hf/adapter_config.json          the method, its layers, the model that it belongs to
   adapter_model.safetensors    what was added, and what trained whole beside it
   config.json                  the model's, with the labels of the head that was trained
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxft import adapters, disk
from jaxft.hf import adapters as files
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.hf.layout import rows
from jaxft.layers import frozen
from jaxft.layers.parameter import ones, zeros
from jaxft.network import Network
from jaxft.peft import adapterhub
from jaxft.peft.exchange import UNWRAPPED, Tensors
from jaxft.peft.methods import Flat
from jaxft.registry import UserError

TASK_TYPES = {
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "vectors": "FEATURE_EXTRACTION",
}
BESIDE = (*hf_folder.BESIDE, files.CONFIG, adapterhub.HEAD_CONFIG)


def exchanged(net: Network) -> bool:
    """Whether what the run trained is a folder of one of the libraries; if not, its whole network is exported."""
    return bool(net.added) and (net.peft.layout != "peft" or net.peft.peft_type != "")


def check(net: Network, base: str) -> None:
    """Raises UserError where what a run of `net` leaves would compute something else in its library, or nowhere."""
    if not exchanged(net):
        return
    if not base:
        raise UserError(
            "peft: the model begins with random weights (model.hf=''), without which nobody could open the adapter; "
            "give model.hf, or take peft.name='full'"
        )
    drops_types = net.head == "span" and net.cfg.types > 1  # its class for these does not pass token_type_ids on
    if net.peft.hub_prefix == UNWRAPPED and (net.head not in TASK_TYPES or drops_types):
        raise UserError(
            f"peft: the `peft` library would compute something else than this model with something before its texts, "
            f"as it does with every {net.family.MODEL_TYPE} of this head ({net.head}); take a method such as 'lora'"
        )
    tied = set(net.tied.values())
    names = {path: row.name for path, row in rows(net.table).items() if net.peft.saves(path, net.head)}
    if both := [path for path, name in names.items() if name in tied]:
        raise UserError(
            f"peft.modules_to_save names {', '.join(both)}, which is the table of the head as well (tied), but not in "
            "the library that opens the adapter; leave it out"
        )


def check_new(net: Network, new: Iterable[str], base: str) -> None:
    """Raises UserError where some of what the model `base` lacks, and so begins at random, would never train."""
    drawn = [path for path in new if net.inits[path] not in (zeros, ones)]
    stays = [path for path in drawn if net.peft.frozen and not net.trains(path)]
    if stays:
        wanted = tuple(sorted({path.rpartition("/")[0] for path in stays}))
        raise UserError(
            f"model.hf={base!r} has no {', '.join(stays)}, which would begin at random and stay so; train it as well, "
            f'--config.peft.modules_to_save="{wanted}", or give a model that has them'
        )


def library(net: Network) -> str:
    """The one that opens what a run leaves, beside transformers: "peft", "adapters", or "" for none."""
    return net.peft.layout if exchanged(net) else ""


def export(
    target: Path,
    net: Network,
    params: Any,
    *,
    base: str,
    task: Mapping[str, Any],
    beside: Callable[[Path], object],
    source: Path | None,
    dtype: str,
    card: str,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes what a run trained: an adapter of `base`, or else the whole network in `dtype` (hf.folder.write)."""
    own: dict[str, Any] = dict(task=task, beside=beside, card=card, check=check)
    if exchanged(net):
        write(target, net, params, base=base, **own)
    else:
        whole = frozen.decoded(params, jnp.dtype(dtype))
        hf_folder.write(target, net, whole, source=source, dtype=dtype, **own)


def write(
    folder: Path,
    net: Network,
    params: Any,
    *,
    base: str,
    task: Mapping[str, Any],
    beside: Callable[[Path], object],
    card: str,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes what a run added to the model `base` so that the method's library opens it; as hf.folder.write otherwise.

    With several processes all must call it.
    """
    flat = flatten_dict(params, sep="/")
    added = {path: save.gather(flat[path], ()) for path in net.added}
    fields, tensors = net.peft.to_hub(adapters.modules(net, net.peft.layout), added, net.declared)
    wholes = _wholes(net, flat)
    hf = hf_folder.config_of(net, task, "float32")
    if net.peft.layout == "adapters":
        configs, weights = adapterhub.packed(fields, tensors, wholes, hf=hf, base=base, d_model=net.cfg.d_model)
    else:
        configs, weights = _packed(net, fields, tensors, wholes, base)
    with disk.writing(folder), save.replacing(folder, beside=BESIDE) as new:
        if jax.process_index() == 0:
            for name, arrays in weights.items():
                files.save(new, arrays, name)
            for name, config in (configs | {hf_folder.CONFIG: hf}).items():
                save.save_json(new, name, config)
            beside(new)
            (new / hf_folder.CARD).write_text(card, encoding="utf-8")
            if check is not None:
                check(new)


def _packed(
    net: Network, fields: Mapping[str, Any], tensors: Tensors, wholes: Tensors, base: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensors]]:
    """(configs by file name, tensors by file name) as the `peft` library has them."""
    config = {
        "peft_type": net.peft.peft_type,
        "task_type": _task_type(net),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": _modules_of(net, wholes) or None,
        **fields,
    }
    whole = {net.peft.hub_prefix + name: array for name, array in wholes.items()}
    return {files.CONFIG: config}, {files.WEIGHTS: tensors | whole}


def _task_type(net: Network) -> str | None:
    """What makes `peft` take a class of its own for the model, which methods that put something before texts need.

    That of answers in texts drops token_type_ids: other methods do without.
    """
    return None if net.head == "span" and net.peft.hub_prefix != UNWRAPPED else TASK_TYPES.get(net.head)


def _wholes(net: Network, flat: Flat) -> Tensors:
    """Hub name -> tensor of what trained whole beside what was added."""
    paths = [path for path in net.table if net.peft.saves(path, net.head)]
    table = {path: row for path, row in rows(net.table).items() if path in paths}
    sharing: dict[str, list[str]] = {}
    for path, row in table.items():
        sharing.setdefault(row.name, []).append(path)
    tensors: Tensors = {}
    for together in sharing.values():
        row = table[together[0]]
        whole = {path: save.gather(flat[path], ()) for path in together}
        whole = {path: array[tuple(slice(0, n) for n in net.stored[path])] for path, array in whole.items()}
        for index, name in row.tensors(net.stored[together[0]]):
            views = [table[path].layout.to_disk(array[index]) for path, array in whole.items()]
            name = adapters.named(net, net.peft.layout, name)
            tensors[name] = views[0] if len(views) == 1 else np.concatenate(views, row.layout.joined)
    return tensors


def _modules_of(net: Network, wholes: Iterable[str]) -> list[str]:
    """What modules_to_save calls the layers of these tensors; of a whole head the outermost module that is its alone.

    `peft` wants all tensors of a module that it is given.
    """
    first = net.family.HF_PREFIX
    head = {row.name.removeprefix(first) for path, row in rows(net.table).items() if path.startswith("head/")}
    bare = {name.removeprefix(first) for name in wholes}
    return sorted({name.split(".")[0] if name in head <= bare else name.rpartition(".")[0] for name in bare})
