"""What every method answers. Most have an own answer to a few of these questions only."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.layers.dropout import dropout
from jaxft.layers.parameter import Init, parameter
from jaxft.peft.exchange import PREFIX, Module, Tensors
from jaxft.registry import UserError, nearest

SLOT = "adapter"  # the attribute of a layer, and so a part of the path of everything that a method adds
FIXED = "fixed"  # what begins with this below a slot does not train, and yet is kept: nobody else has it
CLASSES = ("sequence", "token", "span", "multiple_choice", "detection")  # heads that begin anew with each task

Flat = dict[str, Any]  # parameter path -> array


def is_added(path: str) -> bool:
    """Whether a parameter is of a method, and not of the network that it changes."""
    return SLOT in path.split("/")


@dataclass(frozen=True, kw_only=True)
class Method:
    """`modules_to_save`: regexes of paths of modules that train whole beside it; a head of classes always does."""

    modules_to_save: tuple = ()

    frozen = True  # what does not train is not saved by a run: it can be read again from where it came
    layout = "peft"  # the library whose folders it is exchanged in; "adapters" is the other one
    peft_type = ""  # what the `peft` library calls it; "": it has no such method
    hub_prefix = PREFIX  # what names of tensors of the network itself begin with there

    def attach(self, model: Any) -> None:
        """Puts its modules into the slots of `model`. Raises UserError where there is nothing to put them into."""

    def trains(self, path: str, head: str) -> bool:
        """Whether the parameter trains, in a network with that head."""
        if is_added(path):
            return not path.partition(f"/{SLOT}/")[2].startswith(FIXED)
        return self.saves(path, head)

    def saves(self, path: str, head: str) -> bool:
        """Whether it is one of the network's own that trains whole."""
        if head in CLASSES and path.startswith("head/"):
            return True
        module = path.rpartition("/")[0]
        parents = ["/".join(module.split("/")[: i + 1]) for i in range(module.count("/") + 1)]
        return any(re.fullmatch(pattern, parent) for pattern in self.modules_to_save for parent in parents)

    def check(self, paths: list[str]) -> None:
        """Raises UserError for a pattern of modules_to_save that is none of the network's; `paths` are its own."""
        for pattern in self.modules_to_save:
            modules = sorted({"/".join(parts[: i + 1]) for parts in _modules(paths) for i in range(len(parts))})
            if not any(re.fullmatch(compiled(pattern, "peft.modules_to_save"), module) for module in modules):
                raise UserError(
                    f"peft.modules_to_save: {pattern!r} matches no module; modules: {', '.join(modules)}"
                    f"{nearest(pattern, modules)}"
                )

    def for_run(self, total: int) -> Self:
        """The same with what follows from a run of `total` steps. Raises UserError for one that is not for it."""
        return self

    def started(self, params: Flat) -> Flat:
        """Numbers of its own that follow from those of a network that has just been loaded; for use inside jit."""
        return {}

    def optimizer(self, tx: Any) -> Any:
        """The optimizer of a run around `tx`, another optax transformation whose update takes the global `step`."""
        return tx

    def rate(self, path: str) -> float:
        """Learning rate of a parameter that trains, as a factor."""
        return 1.0

    def losses(self, params: Flat) -> dict[str, tuple[jax.Array, jax.Array]]:
        """What it adds to the loss of the task: name -> (sum, weight)."""
        return {}

    def merged(self, path: str, kernel: jax.Array, added: Flat) -> jax.Array:
        """The kernel [..., in, out] of a plain layer that computes what this one does with `added` in its slot.

        `added` are named from below the slot. Raises UserError where there is no such kernel.
        """
        raise UserError(f"peft.name: what this method adds cannot be merged into the weights ({type(self).__name__})")

    def merged_bias(self, path: str, bias: jax.Array, added: Flat) -> jax.Array:
        """The same of its bias [..., out]."""
        return bias

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        """(fields of adapter_config.json, tensors) of its parameters in the format of the library of `layout`.

        `modules` are the linear layers of the network, `model` is what it was attached to.
        """
        raise NotImplementedError

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        """The inverse: the method, and its parameters, which are taken out of `tensors`. Raises UserError.

        Nothing is attached to `model` yet.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Everything trains, but for what train.freeze names."""

    frozen = False

    def trains(self, path: str, head: str) -> bool:
        return True

    def check(self, paths: list[str]) -> None:
        if self.modules_to_save:
            raise UserError(
                f"peft.modules_to_save={self.modules_to_save!r}: with peft.name='full' everything trains; set it to ()"
            )


def _modules(paths: list[str]) -> list[list[str]]:
    return [path.split("/")[:-1] for path in paths]


def compiled(pattern: str, field: str) -> re.Pattern[str]:
    """Raises UserError for what is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is not a regular expression: {error}") from error


class Adapter(nnx.Module):
    """What stands in the slot of a layer. Beside a stacked layer its parameters are stacked as well.

    `key`: for dropout; given while tracing, since a layer is asked without one.
    """

    def __init__(self, beside: nnx.Param):
        axes = beside.get_metadata("axes")
        self.stacked = beside.get_value().shape[0] if axes[0] == "N" else 0
        self.key: Any = nnx.data(None)

    def parameter(self, shape: tuple[int, ...], axes: tuple[str, ...], init: Init) -> nnx.Param:
        """One of its parameters; `shape` and `axes` are those of one layer."""
        declared = parameter(shape, axes, init)
        if self.stacked:
            declared.set_value(jax.ShapeDtypeStruct((self.stacked, *shape), jnp.float32))
            declared.set_metadata(axes=("N", *axes))
        return declared

    def dropped(self, x: jax.Array, rate: float) -> jax.Array:
        """`x` with dropout, where this is training."""
        return x if self.key is None else dropout(x, rate, jax.random.wrap_key_data(self.key[...]))


def adapters(model: Any) -> dict[str, Any]:
    """Path -> what stands in a slot of `model`, in the order of the paths."""
    found = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    return {path: found[path] for path in sorted(found) if isinstance(found[path], Adapter)}


def give_keys(model: Any, key: jax.Array) -> None:
    """Gives every adapter of a merged `model` keys of its own, one a layer."""
    for i, adapter in enumerate(adapters(model).values()):
        own = jax.random.fold_in(key, i)
        data = jax.random.key_data(jax.random.split(own, adapter.stacked) if adapter.stacked else own)
        adapter.key = nnx.Param(data)


def below(params: Mapping[str, Any], layer: str) -> Flat:
    """What stands in the slot of the layer at `layer`, named from there."""
    start = f"{layer}/{SLOT}/"
    return {path.removeprefix(start): leaf for path, leaf in params.items() if path.startswith(start)}
