"""A run without its data: task, network and optimizer built from the config alone, nothing allocated.

What only the data tell (classes, vocabulary, steps in an epoch) has a stand-in that refuses nothing. So a wrong option
is refused in seconds, not after minutes; and a step can be compiled for machines that are not there (plan.py).
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxft import build, companions, exporting, inputs, sharding, state
from jaxft.config import Config, steps
from jaxft.data import DATASETS
from jaxft.hf import load as hf_load
from jaxft.network import Network
from jaxft.peft import PEFT
from jaxft.registry import UserError, bind, call
from jaxft.tasks import TASKS

CLASSES = 2  # of a task that finds its classes in the data


@dataclass(frozen=True)
class Rehearsal:
    """What a config makes of itself. `reader`: the module of inputs/ that reads what the task reads."""

    task: Any
    reader: Any
    net: Network
    plan: state.Plan
    folders: companions.Folders  # of the networks beside the run's own


def rehearse(
    config: Config, mesh: Mesh, hf_folder: Path | None, *, weights: bool = True, started: bool = False
) -> Rehearsal:
    """Builds all that needs no data. Raises UserError for whatever can be known to be wrong by then.

    `hf_folder` is that of model.hf. `weights`: those of companions will be read; `started`: but for those that train,
    since the run has checkpoints.
    """
    bind(DATASETS, config.data, "data")
    task = call(TASKS, config.task, "task")
    reader = inputs.of(task, build.family_of(config.model, read_config(hf_folder)))
    net = network(config, mesh, hf_folder, task.head, standing(task).outputs, **reader.placeholders(config))
    folders = companions.resolve(task, started=started, weights=weights)
    net = companions.attach(net, task, folders, config)
    total = steps(config.train.duration, "train.duration", per_epoch=1e6)
    count = functools.partial(steps, config.schedule["warmup"], "schedule.warmup")
    # A warm-up in epochs is as short as it can be without being none, which some schedules refuse.
    warmup = count(per_epoch=0.0, total=total) or min(total - 1, 1, count(per_epoch=1e9, total=10**9))
    net = for_run(net, total)
    plan = state.plan(net, config, state.schedule(config, total=total, warmup=warmup))
    return Rehearsal(task, reader, net, plan, folders)


def standing(task: Any) -> Any:
    """The task with stand-ins for the classes that it finds in the data."""
    if hasattr(task, "classes") and not task.classes:
        return dataclasses.replace(task, classes=tuple(map(str, range(CLASSES))))
    return task


def network(config: Config, mesh: Mesh, hf_folder: Path | None, head: str, outputs: int, **given: Any) -> Network:
    """The network of the config; `given` are fields that the data tell."""
    family, cfg = build.family_config(config.model, read_config(hf_folder), **given)
    net = build.network(
        family,
        cfg,
        head=head,
        outputs=outputs,
        model=config.model,
        rules=config.sharding,
        mesh=mesh,
        peft=call(PEFT, config.peft, "peft"),
    )
    exporting.check(net, config.model.hf)
    return net


def for_run(net: Network, total: int) -> Network:
    """`net` in a run of `total` steps."""
    return dataclasses.replace(net, peft=net.peft.for_run(total))


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises UserError where the mesh, the rules of sharding and the batches do not go together."""
    sharding.check_rules(config.sharding.params, config.sharding.activations)
    shards = sharding.batch_shards(mesh, config.sharding.activations)
    for field, rows in (
        ("train.batch", config.train.batch // config.train.accumulate),
        ("evaluate.batch", config.evaluate.batch),
    ):
        if rows % shards:
            micro = " / train.accumulate" if field == "train.batch" and config.train.accumulate > 1 else ""
            raise UserError(
                f"{field}{micro}={rows} rows are not divisible by the {shards} devices that share the batch "
                f"(mesh {shape(mesh)}); use {-(-rows // shards) * shards}, or set mesh.tensor higher"
            )
    length, cut = config.input.length, sharding.pieces("L", config.sharding.activations, mesh)
    if length % cut:
        raise UserError(
            f"input.length={length} tokens are not divisible by the {cut} devices that share a row "
            f"(mesh {shape(mesh)}); use {-(-length // cut) * cut}, or set mesh.context lower"
        )
    ruled = sharding.axes_of(config.sharding.params, config.sharding.activations)
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in ruled:
            raise UserError(
                f"mesh.{axis}={size}, but no rule of sharding.params or sharding.activations uses this axis: "
                "its devices would all do the same; set it to 1"
            )


def shape(mesh: Mesh) -> str:
    """The axes of a mesh that have several devices, in words."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "of one device"


def read_config(hf_folder: Path | None) -> Mapping[str, Any] | None:
    """config.json of a hub folder."""
    return hf_load.read_config(hf_folder) if hf_folder else None
