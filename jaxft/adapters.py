"""Adapters of the libraries `peft` and `adapters` (peft/adapterhub.py) read into a network here, and merged into it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import build
from jaxft.config import Model
from jaxft.hf import adapters as files
from jaxft.hf import folder as hf_folder
from jaxft.hf import hub, processor, tokenizer
from jaxft.hf import load as hf_load
from jaxft.hf import modules as hf_modules
from jaxft.hf.layout import parts, rows
from jaxft.layers import frozen
from jaxft.network import Network
from jaxft.peft import ADAPTERHUB, PEFT_TYPES, adapterhub
from jaxft.peft.exchange import Module, Part, Tensors, check_fields
from jaxft.peft.methods import Flat, Method, below, is_added
from jaxft.registry import UserError, lookup

# What config.json calls the sizes that an adapter depends on, in one family or another.
SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("d_model", "num_layers", "d_ff", "d_kv", "n_embd", "n_layer", "dim", "n_layers", "hidden_dim"),
)


def modules(net: Network, layout: str) -> list[Module]:
    """The linear layers of a network as a library has them, which goes by modules or by names in files."""
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
        names = {index: named(net, layout, text) for index, text in names.items()}
        own = tuple(Part(path.removesuffix("/kernel"), places[path].start, shapes[path][-1]) for path in paths)
        inputs, outputs = shapes[paths[0]][-2], places[paths[0]].whole[axis]
        if name.endswith(".weight"):
            found.append(Module(names, own, inputs, outputs, transposed=axis == 1))
    return found


def named(net: Network, layout: str, name: str) -> str:
    """What the library of that layout calls a module or tensor, by its name in files."""
    return hf_modules.named(net.family.MODEL_TYPE, name) if layout == "peft" else name


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read: its method, its parameters, and tensors of the network itself, by path and index."""

    folder: Path
    method: Method
    added: Flat
    wholes: dict[str, dict[tuple[int, ...], np.ndarray]]


@dataclass(frozen=True)
class Opened:
    """A model folder, or an adapter's with that of its model."""

    base: Path
    adapter: Path | None

    @property
    def hf(self) -> Mapping[str, Any]:
        """config.json, with the head that an adapter brings."""
        hf = hf_load.read_config(self.base)
        if self.adapter is None:
            return hf
        if not (self.adapter / hf_folder.CONFIG).is_file():
            if files.layout(files.read_config(self.adapter)) == "adapters":
                return {**hf, **adapterhub.head_fields(self.adapter)}
            return {**hf, **files.head_fields(self.adapter, hf)}
        own = hf_load.read_config(self.adapter)
        if own["model_type"] != hf["model_type"]:
            raise UserError(
                f"{self.adapter} is an adapter of a {own['model_type']} model, and {self.base} is a {hf['model_type']}"
            )
        # One of both may leave out what its family has anyway.
        if other := [name for name in SIZES if name in own.keys() & hf.keys() and own[name] != hf[name]]:
            ours, theirs = (", ".join(f"{name} {sizes[name]}" for name in other) for sizes in (own, hf))
            raise UserError(
                f"{self.adapter} is an adapter of another model: it is for {ours}, {self.base} has {theirs}"
            )
        return own

    @property
    def beside(self) -> Path:
        """Where the tokenizer or processor is."""
        return self.adapter if self.adapter is not None and _reads(self.adapter) else self.base


def opened(source: str, base: str = "", field: str = "--hf") -> Opened:
    """What the hub id or folder `source`, that `field` names, is. `base` stands over the model that an adapter names.

    Raises UserError where there is no such folder, or no such model.
    """
    folder = hub.resolve(source, weights=False, field=field)
    if not files.is_adapter(folder):
        return Opened(hub.resolve(source, field=field), None)
    section = files.read_config(folder)
    names_it = {"peft": "base_model_name_or_path", "adapters": "model_name"}[files.layout(section)]
    named = base or section.get(names_it)
    if not (named and isinstance(named, str)):
        raise UserError(f"{folder / files.CONFIG} names no {names_it}; pass its model with --hf")
    where = "--hf" if base else f"{folder / files.CONFIG}: {names_it}"
    return Opened(hub.resolve(named, field=where), folder)


def _reads(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*tokenizer.FILES, processor.FILE))


def read(folder: Path, net: Network) -> Adapter:
    """The adapter in `folder` for the plain network `net`.

    Raises UserError for a method that is not known, an adapter of another model, and tensors that nobody reads.
    """
    section = files.read_config(folder)
    layout = files.layout(section)
    known = modules(net, layout)
    if layout == "adapters":
        kind = adapterhub.kind(section, str(folder))
        method_class = lookup(ADAPTERHUB, kind, f"{folder / files.CONFIG}: config")
        first = net.family.HF_PREFIX
        bare = not any(name.startswith(first) for module in known for name in module.names.values())
        tensors = adapterhub.unpacked(folder, first, _linear_of_head(net), bare=bare)
    else:
        method_class = lookup(PEFT_TYPES, str(section.get("peft_type")), f"{folder / files.CONFIG}: peft_type")
        check_fields(section, str(folder))
        tensors = {named(net, layout, name): array for name, array in files.load(folder).items()}
    try:
        method, added = method_class.from_hub(section, tensors, known, str(folder), net.declared)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, re.error) as error:
        # Of fields and tensors that every adapter of its kind has.
        raise UserError(
            f"{folder} cannot be read as an adapter: {type(error).__name__}: {error}; save it again"
        ) from error
    wholes = _read_wholes(net, tensors, folder, layout, method.hub_prefix)
    if tensors:
        shown = ", ".join(sorted(tensors)[:6]) + (", ..." if len(tensors) > 6 else "")
        raise UserError(
            f"{folder} is an adapter of another model: this {net.family.MODEL_TYPE} model has no place for {shown}"
        )
    saved = tuple(sorted({path.rpartition("/")[0] for path in wholes if not path.startswith("head/")}))
    return Adapter(folder, dataclasses.replace(method, modules_to_save=saved), added, wholes)


def _linear_of_head(net: Network) -> list[str]:
    table = rows(net.table)
    return [row.name.removesuffix(".weight") for path, row in table.items() if re.fullmatch("head/.*/kernel", path)]


def _read_wholes(
    net: Network, tensors: Tensors, folder: Path, layout: str, prefix: str
) -> dict[str, dict[tuple[int, ...], np.ndarray]]:
    """The tensors of the network itself, taken out of `tensors`, whose names begin with `prefix` there."""
    table, found = rows(net.table), {}
    places = parts(table, {path: net.stored[path] for path in table})
    used = set()
    for path, row in table.items():
        for index, name in row.tensors(net.stored[path]):
            key = prefix + named(net, layout, name)
            whole = tensors.get(key)
            if whole is None:
                continue
            if whole.shape != places[path].whole:
                raise UserError(_misshapen(folder, name, whole.shape, places[path].whole))
            shape = row.disk_shape(net.stored[path])
            cut = places[path].of(row, tuple(slice(0, n) for n in shape))
            found.setdefault(path, {})[index] = row.layout.to_param(whole[cut])
            used.add(key)
    for name in used:
        del tensors[name]
    return found


def _misshapen(folder: Path, name: str, has: Any, needs: Any) -> str:
    return f"{folder} is an adapter of another model: {name} is {list(has)}, and this model's is {list(needs)}"


def section(name: str, hf: str, *, dtype: str, param_dtype: str) -> Model:
    """The section of a model that is only read, as a verb does that trains nothing."""
    return Model(
        name=name,
        hf=hf,
        scratch={},
        override={},
        dtype=dtype,
        param_dtype=param_dtype,
        frozen_dtype="",
        scan=False,
        remat="none",
        attention="auto",
        reset_head=False,
    )


def loaded(
    make: Callable[..., Network], at: Opened, shared: Flat | None = None
) -> tuple[Network, Any, Flat, list[str]]:
    """(network, its parameters, those of its model alone, what neither the model nor an adapter has).

    `make(peft=None)` builds the network. `shared`: the model's parameters where another call has read them already.
    """
    net, adapter = network(make, at.adapter)
    brought = set() if adapter is None else set(adapter.wholes)
    if shared is None:
        heads = {path for path in brought if path.startswith("head/")}
        params, said = build.parameters(net, at.base, 0, False, without=heads)
        new = set(build.new_of(said))
    else:
        own = {path: leaf.shape for path, leaf in net.abstract.items()}
        kept = {path: leaf for path, leaf in shared.items() if own.get(path) == leaf.shape and path not in brought}
        rest = [path for path in own if path not in kept]
        new = {path for path in rest if not is_added(path)}
        params = unflatten_dict(kept | build.initialise(net, 0, rest), sep="/")
    base = {
        path: leaf for path, leaf in flatten_dict(params, sep="/").items() if not is_added(path) and path not in new
    }
    return net, params if adapter is None else applied(net, params, adapter), base, sorted(new - brought)


def network(make: Callable[..., Network], folder: Path | None) -> tuple[Network, Adapter | None]:
    """(network, adapter) of what `make(peft=None)` builds, with the adapter in `folder` where there is one."""
    if folder is None:
        return make(), None
    adapter = read(folder, make())
    return make(peft=adapter.method), adapter


def applied(net: Network, params: Any, adapter: Adapter) -> Any:
    """`params` of `net` with the numbers of an adapter."""
    flat: Flat = hf_load.flatten(params)
    for path, tensors in adapter.wholes.items():
        for index, array in tensors.items():
            place = (*index, *(slice(0, n) for n in array.shape))
            flat[path] = flat[path].at[place].set(array)
    for path, array in adapter.added.items():
        flat[path] = jax.device_put(jnp.asarray(array, net.abstract[path].dtype), net.abstract[path].sharding)
    return unflatten_dict(flat, sep="/")


def merged(net: Network, params: Any) -> Any:
    """The parameters of a plain network that computes what `net` does. Raises UserError for a method that has none."""
    flat = flatten_dict(frozen.decoded(params, jnp.float32), sep="/")
    plain: Flat = {path: leaf for path, leaf in flat.items() if not is_added(path)}
    for layer in sorted({path.partition("/adapter/")[0] for path in net.added}):
        if f"{layer}/kernel" not in plain:
            raise UserError(f"peft.name: what stands in {layer} cannot be merged into the weights: no kernel is there")
        kernel, added = plain[f"{layer}/kernel"], below(flat, layer)
        merge = jax.jit(lambda kernel, added, layer=layer: net.peft.merged(layer, kernel.astype(jnp.float32), added))
        plain[f"{layer}/kernel"] = merge(kernel, added)
        if f"{layer}/bias" in plain:
            plain[f"{layer}/bias"] = net.peft.merged_bias(layer, plain[f"{layer}/bias"], added)
    return unflatten_dict(plain, sep="/")
