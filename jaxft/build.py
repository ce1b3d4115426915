"""From config to network: structure, shapes, shardings, and parameters that are never whole on one device."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from jaxft import sharding
from jaxft.config import Model as ModelSection
from jaxft.config import Sharding as ShardingSection
from jaxft.hf import load as hf_load
from jaxft.layers import frozen
from jaxft.layers.kernels import choice
from jaxft.layers.stack import Execution
from jaxft.models import ABSENT, MODELS
from jaxft.network import Network
from jaxft.peft.methods import Full, Method, is_added
from jaxft.registry import UserError, check_options, lookup

# Tables over the vocabulary get rows up to a multiple of this, so that every usual tensor axis divides them and
# checkpoints have one shape on every mesh. The rows are zero, no id names them and no logit comes of them.
VOCAB_MULTIPLE = 128
NEW = "new, not in the checkpoint: "  # how `parameters` says so


def network(
    family: Any,
    cfg: Any,
    *,
    head: str,
    outputs: int,
    model: ModelSection,
    rules: ShardingSection,
    mesh: Mesh,
    peft: Method | None = None,
) -> Network:
    """Declares the model of `cfg` with a `head` on `mesh`, and what `peft` (None: nothing) adds. Allocates nothing."""
    peft = peft or Full()
    _check_frozen(model, peft)
    filled = dataclasses.replace(cfg, vocab=_filled_up(cfg.vocab, rules.params, mesh)) if cfg.vocab else cfg
    how = _execution(model, rules, mesh)
    declared = family.Model(filled, head, outputs, how)
    peft.attach(declared)
    structure, state = nnx.split(declared)
    variables = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    letters = {path: variable.get_metadata("axes") for path, variable in variables.items()}
    peft.check([path for path in letters if not is_added(path)])
    matrices = {path for path, axes in letters.items() if sum(letter not in sharding.STACKED for letter in axes) > 1}
    abstract, stored, unsharded = {}, {}, []
    for path, axes in letters.items():
        shape = variables[path].get_value().shape
        kept = model.frozen_dtype if path in matrices and not (is_added(path) or peft.trains(path, head)) else ""
        dtype = jnp.dtype("bfloat16" if kept in frozen.KINDS else kept or model.param_dtype)
        where = sharding.parameter_sharding(shape, axes, rules.params, mesh)
        abstract[path] = jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        stored[path] = tuple(cfg.vocab if axis == "V" else n for n, axis in zip(shape, axes, strict=True))
        if path in matrices:
            unsharded += [f"{path}: {text}" for text in sharding.undivided(shape, axes, rules.params, mesh)]
    _check_experts(abstract, letters, rules, mesh)
    return Network(
        family=family,
        cfg=cfg,
        head=head,
        structure=structure,
        abstract=abstract,
        axes=letters,
        stored=stored,
        inits={path: variable.get_metadata("init") for path, variable in variables.items()},
        mesh=mesh,
        activations=rules.activations,
        how=how,
        unsharded=tuple(unsharded),
        peft=peft,
        quantized=_quantized(abstract, letters, model.frozen_dtype, lambda path: peft.trains(path, head)),
    )


def _check_frozen(model: ModelSection, peft: Method) -> None:
    if model.frozen_dtype and not peft.frozen:
        raise UserError(
            f"model.frozen_dtype={model.frozen_dtype!r} is of what peft keeps, which with peft.name='full' is nothing; "
            "set it to ''"
        )


def _execution(model: ModelSection, rules: ShardingSection, mesh: Mesh) -> Execution:
    """Raises UserError where who is to compute attention cannot."""
    machine = choice.Machine.of(mesh.devices.flat[0])
    dtype = ("float32" if machine.platform == "cpu" else "bfloat16") if model.dtype == "auto" else model.dtype
    cut = sharding.pieces("L", rules.activations, mesh)
    if reason := choice.needs(model.attention, machine, dtype, cut):
        raise UserError(f'model.attention="{model.attention}" {reason}; use "auto"')
    return Execution(dtype=jnp.dtype(dtype), scan=model.scan, remat=model.remat, attention=model.attention)


def _quantized(abstract: Any, letters: Any, kind: str, trains: Callable[[str], bool]) -> dict[str, str]:
    """Path -> kind of the kernels that are kept in few bits: those of stacked blocks that do not train.

    Not of routers, which decide by small differences.
    """
    if kind not in frozen.KINDS:
        return {}
    kernels = [path for path in abstract if letters[path][0] in sharding.STACKED and path.endswith("/kernel")]
    kernels = [path for path in kernels if "router" not in path.split("/") and not trains(path)]
    return {path: kind for path in kernels if frozen.fits(abstract[path].shape)}


def _check_experts(
    abstract: Mapping[str, Any], letters: Mapping[str, tuple[str, ...]], rules: ShardingSection, mesh: Mesh
) -> None:
    """Raises UserError where the mesh cannot share out the experts that a layer has."""
    experts = {abstract[path].shape[axes.index("E")] for path, axes in letters.items() if "E" in axes}
    pieces = sharding.pieces("E", rules.params, mesh)
    if mesh.shape["expert"] > 1 and not experts:
        raise UserError(f"mesh.expert={mesh.shape['expert']}: this model has no experts; set it to 1")
    for n in experts:
        if n % pieces:
            fitting = ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)
            raise UserError(f"mesh.expert={pieces} does not divide the {n} experts of a layer; use one of: {fitting}")


def _filled_up(vocab: int, rules: sharding.Rules, mesh: Mesh) -> int:
    """Rows of a table over the vocabulary."""
    multiple = math.lcm(VOCAB_MULTIPLE, sharding.pieces("V", rules, mesh))
    return -(-vocab // multiple) * multiple


def family_of(model: ModelSection, hf: Mapping[str, Any] | None) -> Any:
    """The module of the family that a hub config.json names, or the config where there is none."""
    name, field = (model.name, "model.name") if hf is None else (hf["model_type"], f"{model.hf}: model_type")
    if name in ABSENT:
        raise UserError(f"{field}={name!r} is not supported: {ABSENT[name]}")
    return lookup(MODELS, name, field)


def family_config(model: ModelSection, hf: Mapping[str, Any] | None, **given: Any) -> tuple[Any, Any]:
    """(family module, its Config): hub values or the defaults, with `model.override` or `model.scratch` on top.

    `hf` is a hub config.json, which names its family itself, or None; `given` are fields that the data tell
    (vocab, pad_id): of a checkpoint only a padding id that its file does not name.
    """
    family = family_of(model, hf)
    if hf is None:
        if model.override:
            raise UserError("model.override replaces fields of a checkpoint, but model.hf is empty; use model.scratch")
        check_options(family.Config, model.scratch, "model.scratch", given)
        return family, family.Config(**model.scratch, **given)
    check_options(family.Config, model.override, "model.override", ("vocab", "pad_id"))
    try:
        found = family.config_from_hf(hf)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        # A table reads some fields before they are checked: text for a number, null, 0 heads.
        raise UserError(
            f"{model.hf}: config.json cannot be read as that of a {hf['model_type']} model: "
            f"{type(error).__name__}: {error}; mend the file"
        ) from error
    cfg = dataclasses.replace(found, **model.override)
    return family, dataclasses.replace(cfg, pad_id=given["pad_id"]) if cfg.pad_id is None else cfg


def initialise(net: Network, seed: int, paths: list[str] | None = None) -> dict[str, jax.Array]:
    """Random parameters for `paths` (by default all), made on the devices that keep them.

    Each path has its own key, so that its numbers depend neither on the mesh nor on which other parameters exist.
    """
    chosen = list(net.abstract) if paths is None else paths

    def make(key: jax.Array) -> dict[str, jax.Array]:
        made = {}
        for path in chosen:
            leaf, init = net.abstract[path], net.inits[path]
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            if net.axes[path][0] in sharding.STACKED:
                keys = jax.random.split(own, leaf.shape[0])
                value = jax.vmap(lambda k, leaf=leaf, init=init: init(k, leaf.shape[1:]))(keys)
            else:
                value = init(own, leaf.shape)
            # Drawn whole, since a length that a mesh does not divide would be computed otherwise in the last bit.
            for axis, size in enumerate(net.stored[path]):
                if size < leaf.shape[axis]:
                    inside = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) < size
                    value = jnp.where(inside, value, 0)
            made[path] = value.astype(leaf.dtype)
        return made

    shardings = {path: net.abstract[path].sharding for path in chosen}
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def parameters(
    net: Network, folder: Path | None, seed: int, reset_head: bool, without: Collection[str] = ()
) -> tuple[Any, list[str]]:
    """(nested parameters as `net.tree` has them, what there is to say).

    Those of the network from `folder` where it is given, but for the paths in `without`; random ones for the rest.
    """
    base = {path: leaf for path, leaf in net.abstract.items() if not is_added(path)}
    kept = functools.partial(_as_kept, net)
    if folder is None:
        flat, new, said = {}, list(base), []
    else:
        head = {path for path in base if path.startswith("head/")}
        loaded, report = hf_load.load(
            folder,
            net.table,
            unflatten_dict(base, sep="/"),
            prefixes=net.prefixes,
            ignore=net.family.HF_IGNORE,
            other=net.family.HF_OTHER,
            legacy=net.family.HF_LEGACY,
            optional=head,
            reset={*without, *(head if reset_head else ())},
            tied=net.tied,
            lent=net.lent,
            shapes={path: net.stored[path] for path in base},
            kept=kept,
        )
        flat = flatten_dict(loaded, sep="/", is_leaf=lambda path, _: "/".join(path) in net.quantized)
        new = [path for path in base if path not in flat]
        said = [NEW + ", ".join(new)] if new else []
        said += [f"dropped, of another head: {', '.join(report.dropped)}"] if report.dropped else []
    flat |= {path: kept(path, array) for path, array in initialise(net, seed, new + net.added).items()}
    return unflatten_dict(_started(net, flat), sep="/"), said


def new_of(said: list[str]) -> list[str]:
    """The paths of what `parameters` has drawn at random for want of weights, from what it says."""
    return [path for text in said if text.startswith(NEW) for path in text.removeprefix(NEW).split(", ")]


def _as_kept(net: Network, path: str, array: jax.Array) -> Any:
    """A parameter as `net.tree` has it."""
    if path not in net.quantized:
        return array
    tree: dict[str, Any] = hf_load.flatten(net.tree)
    where = {name: tree[f"{path}/{name}"].sharding for name in ("codes", "scales")}
    kind = net.quantized[path]

    def encode(stacked: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(lambda kernel: frozen.quantize(kernel, kind), stacked)  # one layer's float32 at a time

    encoded = jax.block_until_ready(jax.jit(encode, out_shardings=where)(array))
    array.delete()  # at once: the next one must find room
    return encoded


def _started(net: Network, flat: dict[str, Any]) -> dict[str, Any]:
    """`flat` with the numbers of the method's that follow from the network's."""
    if not net.added:
        return flat
    start = jax.jit(lambda flat: net.peft.started(frozen.seen(flat)))
    made = start(flat)
    return flat | {path: jax.device_put(array, net.abstract[path].sharding) for path, array in made.items()}
