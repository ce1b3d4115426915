"""Adapters between a network here and the folders of the `peft` library: what was added to a model, without the model.

hf/adapter_config.json          the method, its layers, the model that it belongs to
   adapter_model.safetensors    what was added, and what trained whole beside it
   config.json                  the model's, with the labels of the head that was trained
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import disk
from jaxft.hf import adapters as files
from jaxft.hf import folder as hf_folder
from jaxft.hf import hub, save
from jaxft.hf.layout import parts, rows
from jaxft.layers import quantized
from jaxft.network import Network
from jaxft.peft import PEFT_TYPES
from jaxft.peft.exchange import Module, Part, Tensors
from jaxft.peft.methods import Flat, Method, below, is_added
from jaxft.registry import UserError, lookup

TASK_TYPES = {
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "vectors": "FEATURE_EXTRACTION",
}
BESIDE = (*hf_folder.BESIDE, files.CONFIG)


def exchanged(net: Network) -> bool:
    """Whether what the run trained is a folder of the `peft` library; if not, its whole network is exported."""
    return bool(net.added) and net.peft.peft_type != ""


def modules(net: Network) -> list[Module]:
    """The linear layers of a network as the hub has them."""
    linear = {
        path: row for path, row in rows(net.table).items() if path.endswith("/kernel") and len(row.layout.param) == 2
    }
    shapes = {path: net.stored[path] for path in linear}
    places = parts(linear, shapes)
    sharing: dict[str, list[str]] = {}
    for path, row in linear.items():
        sharing.setdefault(row.name, []).append(path)
    found = []
    for name, paths in sharing.items():
        row, (_, out) = linear[paths[0]], linear[paths[0]].layout.param
        axis = row.layout.disk.index(out)
        names = {index: text.removesuffix(".weight") for index, text in row.tensors(shapes[paths[0]])}
        own = tuple(Part(path.removesuffix("/kernel"), places[path].start, shapes[path][-1]) for path in paths)
        inputs, outputs = shapes[paths[0]][-2], places[paths[0]].whole[axis]
        if name.endswith(".weight"):
            found.append(Module(names, own, inputs, outputs, transposed=axis == 1))
    return found


# ---- writing ----


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
    """Writes what a run added to the model `base` so that the `peft` library opens it; as hf.folder.write otherwise.

    With several processes all must call it.
    """
    flat = flatten_dict(params, sep="/")
    added = {path: save.gather(flat[path], ()) for path in net.added}
    fields, tensors = net.peft.to_hub(modules(net), added, net.declared)
    wholes = _wholes(net, flat)
    config = {
        "peft_type": net.peft.peft_type,
        "task_type": TASK_TYPES.get(net.head),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": sorted({_module_of(net, name) for name in wholes}) or None,
        **fields,
    }
    with disk.writing(folder), save.replacing(folder, beside=BESIDE) as new:
        if jax.process_index() == 0:
            files.save(new, tensors | {net.peft.hub_prefix + name: array for name, array in wholes.items()})
            save.save_json(new, files.CONFIG, config)
            save.save_json(new, hf_folder.CONFIG, hf_folder.config_of(net, task, "float32"))
            beside(new)
            (new / hf_folder.CARD).write_text(card, encoding="utf-8")
            if check is not None:
                check(new)


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
            tensors[name] = views[0] if len(views) == 1 else np.concatenate(views, row.layout.joined)
    return tensors


def _module_of(net: Network, name: str) -> str:
    """What modules_to_save calls the layer of a tensor: of a head the outermost module that is the head's alone."""
    bare = name.removeprefix(net.family.HF_PREFIX)
    head = {
        row.name.removeprefix(net.family.HF_PREFIX) for path, row in rows(net.table).items() if path.startswith("head/")
    }
    return bare.split(".")[0] if bare in head else bare.rpartition(".")[0]


# ---- reading ----


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read: its method, its parameters, and tensors of the network itself, by path and index."""

    folder: Path
    method: Method
    added: Flat
    wholes: dict[str, dict[tuple[int, ...], np.ndarray]]


def folders(folder: Path, base: str = "") -> tuple[Path, Path | None]:
    """(the model's folder, the adapter's) of one that may be an adapter's; `base` stands over what it names as its model."""
    if not files.is_adapter(folder):
        return folder, None
    named = base or files.read_config(folder).get("base_model_name_or_path") or ""
    if not named:
        raise UserError(
            f"{folder / files.CONFIG} names no base_model_name_or_path; give the model with --hf and this with --adapter"
        )
    return hub.resolve(named, field=f"{folder / files.CONFIG}: base_model_name_or_path"), folder


def config(base: Mapping[str, Any], adapter: Path | None) -> Mapping[str, Any]:
    """config.json of a model with the head that an adapter brings."""
    if adapter is None or not (adapter / hf_folder.CONFIG).is_file():
        return base
    own = files_config(adapter)
    if own.get("model_type") != base["model_type"]:
        raise UserError(
            f"{adapter} is an adapter of a {own.get('model_type')} model, and this is a {base['model_type']}"
        )
    return own


def files_config(folder: Path) -> dict[str, Any]:
    from jaxft.hf import load

    return load.read_config(folder)


def read(folder: Path, net: Network) -> Adapter:
    """The adapter in `folder` for the plain network `net`.

    Raises UserError for a method that is not known, an adapter of another model, and tensors that nobody reads.
    """
    section = files.read_config(folder)
    method_class = lookup(PEFT_TYPES, str(section.get("peft_type")), f"{folder / files.CONFIG}: peft_type")
    tensors = files.load(folder)
    method, added = method_class.from_hub(section, tensors, modules(net), str(folder), net.declared)
    wholes = _read_wholes(net, tensors, method.hub_prefix, folder)
    if tensors:
        shown = ", ".join(sorted(tensors)[:6]) + (", ..." if len(tensors) > 6 else "")
        raise UserError(
            f"{folder} is an adapter of another model: a {net.family.MODEL_TYPE} model with these sizes has no place for {shown}"
        )
    saved = tuple(sorted({path.rpartition("/")[0] for path in wholes if not path.startswith("head/")}))
    return Adapter(folder, dataclasses.replace(method, modules_to_save=saved), added, wholes)


def _read_wholes(
    net: Network, tensors: Tensors, prefix: str, folder: Path
) -> dict[str, dict[tuple[int, ...], np.ndarray]]:
    """The tensors of the network itself, taken out of `tensors`."""
    table, found = rows(net.table), {}
    places = parts(table, {path: net.stored[path] for path in table})
    used = set()
    for path, row in table.items():
        for index, name in row.tensors(net.stored[path]):
            whole = tensors.get(prefix + name)
            if whole is None:
                continue
            if whole.shape != places[path].whole:
                raise UserError(
                    f"{folder} is an adapter of another model: {name} is {list(whole.shape)}, and this one has {list(places[path].whole)}"
                )
            shape = row.disk_shape(net.stored[path])
            cut = places[path].of(row, tuple(slice(0, n) for n in shape))
            found.setdefault(path, {})[index] = row.layout.to_param(whole[cut])
            used.add(prefix + name)
    for name in used:
        del tensors[name]
    return found


def network(make: Callable[..., Network], folder: Path | None) -> tuple[Network, Adapter | None]:
    """(network, adapter) of what `make` builds (with an argument `peft`), with the adapter in `folder` where there is one."""
    if folder is None:
        return make(), None
    adapter = read(folder, make())
    return make(peft=adapter.method), adapter


def applied(net: Network, params: Any, adapter: Adapter) -> Any:
    """`params` of `net` with the numbers of an adapter."""
    flat = dict(flatten_dict(params, sep="/"))
    for path, tensors in adapter.wholes.items():
        for index, array in tensors.items():
            place = (*index, *(slice(0, n) for n in array.shape))
            flat[path] = flat[path].at[place].set(array)
    for path, array in adapter.added.items():
        flat[path] = jax.device_put(jnp.asarray(array, net.abstract[path].dtype), net.abstract[path].sharding)
    return unflatten_dict(flat, sep="/")


# ---- merging ----


def merged(net: Network, params: Any) -> Any:
    """The parameters of a plain network that computes what `net` does. Raises UserError for a method that has none."""
    flat = flatten_dict(quantized.decoded(params, jnp.float32), sep="/")
    plain = {path: leaf for path, leaf in flat.items() if not is_added(path)}
    for layer in sorted({path.partition("/adapter/")[0] for path in net.added}):
        if f"{layer}/kernel" not in plain:
            raise UserError(f"peft.name: what stands at {layer} is beside no kernel, and cannot be merged into one")
        kernel, added = plain[f"{layer}/kernel"], below(flat, layer)
        merge = jax.jit(lambda kernel, added, layer=layer: net.peft.merged(layer, kernel.astype(jnp.float32), added))
        plain[f"{layer}/kernel"] = merge(kernel, added)
    return unflatten_dict(plain, sep="/")
