"""A config on devices that need not be there: its train step compiled, and what the program says of itself."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxft import rehearsal, sharding, state
from jaxft.config import Config
from jaxft.planning import hlo, matmuls, products, topology, traffic
from jaxft.throughput import model_flops

REMATERIALIZED = "Involuntary full rematerialization"  # XLA copies a whole array to every device on the way


@dataclass(frozen=True)
class Step:
    """A train step as it was compiled. Bytes and FLOPs are of one device, but for `model_flops`, of all together.

    too_many: bytes that the compiler says there are too many; then nothing after `total` is known.
    """

    mesh: dict[str, int]
    parameters: int
    optimizer: int
    other_state: int  # frozen parameters, moving average, companions that only answer
    host: int  # of the optimizer's, those that live in the host's memory
    batch_bytes: int
    compile_seconds: float
    tokens: int  # of a step, all rows full
    flops: float
    flops_known: bool  # no loop whose turns are not known
    model_flops: float  # forward and backward, by the family's convention, nothing computed twice
    total: float  # bytes a device at the worst instant, by the compiler
    unsharded: tuple[str, ...]  # parameters that a rule would share out but whose size does not divide
    too_many: float = 0
    activations: float = 0  # of the temporaries those that wait for the backward pass
    temporaries: float = 0  # all others: gradients, what is gathered, what a layer works with
    memory_bytes: float = 0  # read and written in a step
    collectives: tuple[traffic.Collective, ...] = ()
    largest_gather: float = 0  # bytes of the largest array that an all-gather ends in
    products: dict[str, float] = dataclasses.field(default_factory=dict)  # dtype -> share of the matrix products
    rematerialized: int = 0


def measure(config: Config, devices: Sequence[Any], hf_folder: Path | None) -> Step:
    """Compiles the step of `config` for `devices`. Raises UserError where the config is wrong or does not fit them.

    `hf_folder` is that of model.hf, of which config.json is enough. A lack of memory is no error, but told.
    """
    mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), devices)
    rehearsal.check_mesh(config, mesh)
    rehearsed = rehearsal.rehearse(config, mesh, hf_folder, weights=False)
    task, net, plan = rehearsed.task, rehearsed.net, rehearsed.plan
    blank = rehearsed.reader.blank(config, net.cfg, rehearsal.standing(task))
    batch = _batch(blank, config, mesh)
    given = _given(net)
    step = state.training_step(net, task, plan, config)
    platform, experts = mesh.devices.flat[0].platform, sharding.pieces("E", config.sharding.params, mesh)
    flops, known = matmuls.flops(
        step, plan.abstract, batch, given, platform=platform, experts=experts, causal=net.family.KIND == "decoder"
    )
    # Model FLOPs of an encoder-decoder are of one token of each.
    length = float(np.mean([blank[name].shape[-1] for name in ("segment", "target_segment") if name in blank]))
    parts = plan.abstract
    told = {
        "mesh": dict(mesh.shape),
        "parameters": _bytes(parts.params),
        "optimizer": _bytes(parts.opt),
        "other_state": _bytes((parts.frozen, parts.ema, given)),
        "host": _bytes(parts.opt, "pinned_host"),
        "batch_bytes": _bytes(batch),
        "tokens": round(config.train.batch * length),
        "flops": flops / mesh.size,
        "flops_known": known,
        "model_flops": config.train.batch * length * model_flops(net, task, attended=length),
        "unsharded": net.unsharded,
    }
    started = time.perf_counter()
    with topology.silent() as said:
        compiled, short = _compiled(step.lower(plan.abstract, batch, given))
    told["compile_seconds"] = time.perf_counter() - started
    if compiled is None:
        return Step(**told, total=short[0], too_many=short[1])
    held = sum(told[name] for name in ("parameters", "optimizer", "other_state", "batch_bytes")) - told["host"]
    return Step(**told, **_read(compiled, devices, held), rematerialized=sum(REMATERIALIZED in line for line in said))


# "Used 30.2G of 15.75G hbm", "HLO temporaries (30.12G) exceeds available HBM (15.75G)": both with what a step is given.
_SIZES = re.compile(r"([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])", re.IGNORECASE)


def _compiled(lowered: Any) -> tuple[Any, tuple[float, float]]:
    """(the program, (0, 0)), or (None, (bytes needed, bytes too many)) where it has no room."""
    try:
        return lowered.compile(), (0.0, 0.0)
    except jax.errors.JaxRuntimeError as error:
        told = _SIZES.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not told:
            raise
        used, there = (float(told[i]) * 1024 ** " KMGT".index(told[i + 1].upper()) for i in (1, 3))
        return None, (used, used - there)


def _read(compiled: Any, devices: Sequence[Any], held: float) -> dict[str, Any]:
    """The figures of a program. `held`: bytes that a device holds when the step begins."""
    module, sizes = hlo.read(compiled.as_text()), compiled.memory_analysis()
    # The peak includes what lies in the host's memory, of which a program may have more than the device has of its own.
    host = sizes.host_argument_size_in_bytes + sizes.host_output_size_in_bytes - sizes.host_alias_size_in_bytes
    peak = sizes.peak_memory_in_bytes
    if devices[0].platform == "cpu":  # whose peak leaves out the temporaries
        given = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        peak = given + sizes.temp_size_in_bytes
    total = max(peak - host, held)
    kept = min(traffic.kept(module), total - held)
    return {
        "activations": kept,
        "temporaries": total - held - kept,
        "total": total,
        "memory_bytes": traffic.memory_bytes(module),
        "collectives": (found := tuple(traffic.collectives(module, len(devices), sharding.slices(devices)))),
        "largest_gather": max((one.bytes * one.size for one in found if one.kind == "all-gather"), default=0),
        "products": products.by_dtype(module),
    }


def _batch(blank: Mapping[str, np.ndarray], config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    where = sharding.batch_sharding(mesh, config.sharding.activations)
    return {
        name: jax.ShapeDtypeStruct((config.train.batch, *array.shape[1:]), array.dtype, sharding=where)
        for name, array in blank.items()
    }


def _given(net: Any) -> dict[str, Any]:
    """The parameters of companions that only answer, as companions.given has them."""
    answering = {name: beside for name, beside in net.companions.items() if not beside.wish.trained}
    return {name: unflatten_dict(beside.net.abstract, sep="/") for name, beside in answering.items()}


def _bytes(tree: Any, kind: str = "") -> int:
    """Bytes of a tree on one device; with `kind` of what lives in that memory alone."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not kind or leaf.sharding.memory_kind == kind]
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)
