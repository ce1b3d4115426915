"""Networks that a task asks for beside its own: a generator that trains along, a teacher that only answers.

Parameters that train are a branch of the run's, under the companion's name: so optimizer, average, freezing, sharding
and checkpoints know them. Those of one that only answers are an argument of the step. They are in no checkpoint, but
read again from where they came from whenever the run starts, and refused when they are not what they were.

A task with companions has, beside what tasks have:

companions                      name -> Companion
declare(name, net)              (family, Config) of one without a checkpoint, None where it is not needed after all;
                                `net` has those before it
check_companions(net)           raises UserError where they do not go together
assumed(net)                    what it takes for granted of them, in words
forward(net, params, given, batch, key)     (what its `loss` takes for logits, losses of the networks' own); `given` are
                                the parameters of those that only answer, none of them in an evaluation
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from jaxft import build
from jaxft.config import Config
from jaxft.hf import files, hub, tokenizer, vocabulary
from jaxft.hf import load as hf_load
from jaxft.models import MODELS
from jaxft.network import Network
from jaxft.registry import UserError, lookup
from jaxft.tasks import Companion

Folders = Mapping[str, Path | None]  # companion -> the checkpoint that it begins with


@dataclass(frozen=True)
class Beside:
    """A companion's network, with what the task said of it. `shared` are the parameters that it has of the other."""

    net: Network
    wish: Companion
    folder: Path | None
    shared: tuple[str, ...]

    @property
    def hf(self) -> dict[str, Any]:
        """config.json of its checkpoint."""
        assert self.folder is not None
        return hf_load.read_config(self.folder)

    def whole(self, own: Any, params: Any) -> Any:
        """Its parameters: `own` and those of `params` that it shares."""
        flat = hf_load.flatten(params)
        return unflatten_dict(hf_load.flatten(own) | {path: flat[path] for path in self.shared}, sep="/")

    def apart(self, whole: Any) -> Any:
        """The inverse: its parameters without those that it shares."""
        flat = hf_load.flatten(whole)
        return unflatten_dict({path: leaf for path, leaf in flat.items() if path not in self.shared}, sep="/")

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for path, shape in self.net.stored.items() if path not in self.shared)


def of(task: Any) -> dict[str, Companion]:
    """What a task asks for; most have no companions."""
    return getattr(task, "companions", {})


def resolve(task: Any, *, started: bool, weights: bool = True) -> Folders:
    """The folders of the companions that begin with a checkpoint. Raises UserError where there is none.

    `started`: the run has checkpoints of its own, so that those who train need no weights. `weights`: any are needed.
    """
    return {
        name: hub.resolve(wish.hf, weights=weights and not (started and wish.trained), field=wish.field)
        if wish.hf
        else None
        for name, wish in of(task).items()
    }


def attach(net: Network, task: Any, folders: Folders, config: Config) -> Network:
    """`net` with the companions of `task`. Allocates nothing. Raises UserError where they do not go together."""
    for name, wish in of(task).items():
        folder = folders[name]
        if folder is None:
            if (declared := task.declare(name, net)) is None:
                continue
            family, cfg = declared
        else:
            section = dataclasses.replace(config.model, hf=wish.hf, override={})
            family, cfg = build.family_config(section, hf_load.read_config(folder), pad_id=net.cfg.pad_id)
            if wish.head not in family.HF_HEADS:
                heads = ", ".join(family.HF_HEADS)
                raise UserError(
                    f"{wish.field}={wish.hf!r}: the task needs a {wish.head} head, and a {family.MODEL_TYPE} model "
                    f"has: {heads}; take another one"
                )
        net = _with(net, name, wish, family, cfg, folder, config)
    if net.companions:
        task.check_companions(net)
    return net


def _with(net: Network, name: str, wish: Companion, family: Any, cfg: Any, folder: Any, config: Config) -> Network:
    """`net` with one more. Raises UserError where the two cannot share what they are to."""
    model = dataclasses.replace(config.model, frozen_dtype="")
    own = build.network(
        family, cfg, head=wish.head, outputs=wish.outputs, model=model, rules=config.sharding, mesh=net.mesh
    )
    shared = tuple(path for path in own.abstract if wish.shares and path.startswith(wish.shares))
    if missing := [path for path in shared if net.stored.get(path) != own.stored[path]]:
        raise UserError(
            f"{wish.field}: {', '.join(missing)} would be shared with the model, where they have another shape or "
            "are not there; take two models that belong together"
        )
    return dataclasses.replace(net, companions={**net.companions, name: Beside(own, wish, folder, shared)})


def record(net: Network) -> dict[str, Any]:
    """What a checkpoint says of the companions that are exported, for `attach_recorded`."""
    exported = {name: beside.net for name, beside in net.companions.items() if beside.wish.export}
    return {
        name: {"family": own.family.MODEL_TYPE, "config": dataclasses.asdict(own.cfg)} for name, own in exported.items()
    }


def attach_recorded(net: Network, task: Any, record: Mapping[str, Any], config: Config) -> Network:
    """`net` with the companions of a checkpoint that are exported, wherever they once came from."""
    for name, told in record.items():
        family = lookup(MODELS, told["family"], "model.name")
        net = _with(net, name, of(task)[name], family, family.Config(**told["config"]), None, config)
    return net


def exported(net: Network, params: Any) -> dict[str, tuple[Beside, Any]]:
    """Name -> (companion, all its parameters) of those that become a folder of their own."""
    along = {name: beside for name, beside in net.companions.items() if beside.wish.export}
    return {name: (beside, beside.whole(params[name], params)) for name, beside in along.items()}


def folder_of(target: Path, name: str) -> Path:
    """Where a companion is exported whose other is exported to `target`."""
    return target.with_name(f"{target.name}-{name}")


def lend_tokenizer(folders: Folders, target: Path, length: int) -> None:
    """Gives the tokenizer of a companion to a model from random weights, which would otherwise train one."""
    source = next((folder for folder in folders.values() if folder is not None), None)
    if source is not None and not target.exists():
        tokenizer.copy(source, target, length)


def check_inputs(net: Network, inputs: Any, length: int) -> None:
    """Raises UserError where a companion reads texts otherwise than the model, or not as much of them."""
    for beside in net.companions.values():
        if beside.folder is None:
            continue
        where = f"{beside.wish.field}={beside.wish.hf!r}"
        if difference := vocabulary.difference(inputs.encoder, tokenizer.load(beside.folder)):
            raise UserError(
                f"{where}: its tokenizer is not the model's: {difference}. Both must read alike: take another one, or "
                "start the model from random weights (model.hf=''), which then takes this tokenizer"
            )
        if beside.net.cfg.positions < length:
            raise UserError(f"{where} has {beside.net.cfg.positions} positions; set input.length={length} lower")
        inputs.check(beside.net.cfg)


def described(net: Network, task: Any) -> list[str]:
    """What there is to say of the companions, a line each."""
    lines = [
        f"{name}: {beside.parameters:,} parameters, which {'train along' if beside.wish.trained else 'stay'}"
        for name, beside in net.companions.items()
    ]
    return lines + (task.assumed(net) if net.companions else [])


def start(net: Network, params: Any, seed: int, say: Callable[[str], None]) -> Any:
    """`params` of the model itself with those of the companions that train along."""
    for name, beside in net.companions.items():
        if not beside.wish.trained:
            continue
        whole, said = _parameters(name, beside, seed)
        for text in said:
            say(f"{name}: {text}")
        ours, theirs = hf_load.flatten(params), hf_load.flatten(whole)
        if beside.folder and not all(bool(jnp.array_equal(ours[path], theirs[path])) for path in beside.shared):
            say(f"{name}: it shares {beside.wish.shares} with the model, whose numbers are taken; its own are others")
        params = params | {name: beside.apart(whole)}
    return params


def given(net: Network, seed: int) -> dict[str, Any]:
    """The parameters of companions that only answer. Raises UserError for one whose head was never trained."""
    found = {}
    for name, beside in net.companions.items():
        if not beside.wish.trained:
            found[name], said = _parameters(name, beside, seed)
            if build.new_of(said):
                raise UserError(
                    f"{beside.wish.field}={beside.wish.hf!r} has no trained head: {said[0]}; fine-tune it first"
                )
    return found


def _parameters(name: str, beside: Beside, seed: int) -> tuple[Any, list[str]]:
    own = (seed + zlib.crc32(name.encode())) % 2**32  # else equal parameters of both would begin with equal numbers
    return build.parameters(beside.net, beside.folder, own, reset_head=False)


def identity(net: Network) -> dict[str, str]:
    """sha256 of the weights of companions that only answer, under the config's field."""
    found = {}
    for beside in net.companions.values():
        if beside.wish.trained or beside.folder is None:
            continue
        found[beside.wish.field] = files.weights_digest(beside.folder)
    return found
