"""Bottleneck adapters: narrow feed-forwards that train, within blocks that stay as they are (Houlsby et al. 2019)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.layers.dense import Dense
from jaxft.layers.mlp import ACTIVATIONS
from jaxft.layers.parameter import Init, Normal
from jaxft.layers.stack import stack
from jaxft.peft import adapterhub, targets
from jaxft.peft.exchange import Module, Tensors, check_shape, stacked
from jaxft.peft.methods import SLOT, Adapter, Flat, Method
from jaxft.registry import UserError

PARTS = {  # parameter below a slot -> what the library calls it below its own; kernels are stored [out, in] there
    "down/kernel": "adapter_down.0.weight",
    "down/bias": "adapter_down.0.bias",
    "up/kernel": "adapter_up.weight",
    "up/bias": "adapter_up.bias",
}


def narrow_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 0.01^2) without what is more than two standard deviations away (Houlsby et al. 2019, section 3)."""
    return 1e-2 * jax.random.truncated_normal(key, -2, 2, shape, jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method):
    """dropout(up(act(down(y)))) is added to y, with both layers affine.

    `width` is that of the bottleneck; 0: d_model / `reduction`, rounded down. `act` is one of layers.mlp.ACTIVATIONS.
    """

    layout, hub_prefix = "adapters", ""

    reduction: float = 16.0
    width: int = 0
    act: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.reduction <= 0:
            raise UserError(f"peft.reduction={self.reduction} must be above 0")
        if self.width < 0:
            raise UserError(f"peft.width={self.width} must be 1 or more, or 0: d_model / peft.reduction")
        if not 0 <= self.dropout < 1:
            raise UserError(f"peft.dropout={self.dropout} must be at least 0 and below 1")
        if self.act not in ACTIVATIONS:
            raise UserError(f"peft.act={self.act!r} must be one of: {', '.join(ACTIVATIONS)}")

    def width_in(self, d_model: int) -> int:
        width = self.width or int(d_model // self.reduction)
        if width < 1:
            raise UserError(f"peft.reduction={self.reduction} leaves no width of {d_model}; use {d_model} or less")
        return width

    # ---- the format of the `adapters` library ----

    kind = ""  # of adapterhub.KINDS

    def slot(self, path: str) -> str:
        """The path of the slot whose adapter the library has behind the affine layer at `path`; "": there is none."""
        raise NotImplementedError

    def places(self) -> dict[str, Any]:
        """Where the adapters stand, in fields of the library's config."""
        return adapterhub.KINDS[self.kind]

    @classmethod
    def of_places(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse: options of this method."""
        return {}

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        tensors: Tensors = {}
        left, d_model = set(added), 0
        for module in modules:
            slot = self.slot(module.parts[0].path)
            if f"{slot}/down/kernel" not in added:
                continue
            d_model = module.outputs
            for part, ending in PARTS.items():
                left.discard(f"{slot}/{part}")
                for index, name in module.names.items():
                    tensors[f"{adapterhub.place(name)}.{ending}"] = added[f"{slot}/{part}"][index].T
        if left:
            raise UserError(f"the `adapters` library has no place for {', '.join(sorted(left))}")
        options = {"non_linearity": self.act, "dropout": self.dropout}
        options["reduction_factor"] = adapterhub.factor(d_model, self.width_in(d_model))
        return {"config": adapterhub.FIXED | self.places() | options}, tensors

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        options = adapterhub.options(section, folder)
        method = cls(act=options["non_linearity"], dropout=float(options["dropout"]), **cls.of_places(options))
        found: dict[str, tuple[Module, dict[str, dict]]] = {}
        for module in modules:
            if slot := method.slot(module.parts[0].path):
                found[slot] = (module, _taken(tensors, module, section["name"], options["scaling"], folder))
        widths = {len(bias) for _, parts in found.values() for bias in parts["down/bias"].values()}
        if not widths:
            raise UserError(f"{folder} is an adapter of another model: it has no tensors for this one")
        # Layers may have widths of their own, or no adapter. Units of zeros change nothing, and make them alike.
        width, added = max(widths), {}
        for slot, (module, parts) in found.items():
            d_model = module.outputs
            shapes = ((d_model, width), (width,), (width, d_model), (d_model,))
            for part, shape in zip(PARTS, shapes, strict=True):
                added[f"{slot}/{part}"] = stacked(parts[part], module.names, shape)
        return dataclasses.replace(method, width=width), added


def _taken(
    tensors: Tensors, module: Module, name: str, scaling: float, folder: str
) -> dict[str, dict[tuple[int, ...], np.ndarray]]:
    """Parameter below a slot -> index -> its numbers, of the adapters beside one module; taken out of `tensors`."""
    found: dict[str, dict[tuple[int, ...], np.ndarray]] = {part: {} for part in PARTS}
    for index, linear in module.names.items():
        names = {part: f"{adapterhub.place(linear, name)}.{ending}" for part, ending in PARTS.items()}
        if names["down/bias"] not in tensors:
            continue
        if missing := [full for full in names.values() if full not in tensors]:
            raise UserError(f"{folder}: {missing[0]} is missing beside {names['down/bias']}")
        width, d_model = len(tensors[names["down/bias"]]), module.outputs
        shapes = ((width, d_model), (width,), (d_model, width), (d_model,))
        for (part, full), shape in zip(names.items(), shapes, strict=True):
            array = tensors.pop(full)
            check_shape(full, array, shape, folder)
            found[part][index] = array.T * (scaling if part.startswith("up/") else 1.0)
    return found


@dataclass(frozen=True, kw_only=True)
class Houlsby(Bottleneck):
    """Behind the output projection of attention and behind the feed-forward, before what they give is added.

    `cross`: behind attention over a source as well. The paper trains the norms too: modules_to_save=("blocks/.*norm",).
    Dropout of the network follows the adapter, where the paper's code has it before. Source: Houlsby et al. 2019,
    figure 2; "double_seq_bn" of the library.
    """

    kind = "double_seq_bn"

    cross: bool = False

    def attach(self, model: Any) -> None:
        known = targets.layers(model)
        behind: dict[str, Any] = {path: known[path] for path in known if self.slot(path)}
        for role in ("out", "down"):
            if not any(path.endswith(f"/{role}") for path in behind):
                raise UserError(
                    f"peft.name='houlsby' needs an affine layer `{role}` in every block, and this model has none; use "
                    f"'pfeiffer', or another method; layers: {', '.join(known)}"
                )
        for layer in behind.values():
            layer.adapter = BehindLayer(layer.kernel, self, narrow_normal)

    def slot(self, path: str) -> str:
        *_, parent, role = ("", *path.split("/"))
        parents = ("attn", "cross") if self.cross else ("attn",)
        return f"{path}/{SLOT}" if role == "down" or (role == "out" and parent in parents) else ""

    def places(self) -> dict[str, Any]:
        return {**super().places(), "cross_adapter": self.cross}

    @classmethod
    def of_places(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        return {"cross": bool(section["cross_adapter"])}


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(Bottleneck):
    """One in each block, of what its feed-forward gives when that has been added and normalised; then both once more.

    Of y, which the feed-forward gives to x: norm(x + y + adapter(norm(x + y))) where a block ends with a norm, and
    x + y + adapter(x + y) where it does not. Source: Pfeiffer et al. 2020 (AdapterFusion), figure 5; "seq_bn" of the
    library by the same authors, which also says how it begins: all kernels N(0, 0.02^2).
    """

    kind = "seq_bn"

    def attach(self, model: Any) -> None:
        blocks: list[Any] = [
            block for _, block in nnx.iter_modules(model) if hasattr(block, "mlp") and hasattr(block, SLOT)
        ]
        if not blocks:
            raise UserError(
                "peft.name='pfeiffer' needs blocks with a feed-forward, and this model has none; layers: "
                f"{', '.join(targets.layers(model))}"
            )
        for block in blocks:
            block.adapter = AfterFeedForward(block.mlp_norm.scale, self, Normal(0.02))

    def slot(self, path: str) -> str:
        block, mlp, below = path.rpartition("/mlp/")
        return f"{block}/{SLOT}" if mlp and below.split("/")[-1] == "down" else ""


class Narrow(Adapter):
    """What both kinds compute: [..., D] -> [..., D]."""

    def __init__(self, beside: nnx.Param, method: Bottleneck, init: Init):
        super().__init__(beside)
        d_model, letter = beside.get_value().shape[-1], beside.get_metadata("axes")[-1]
        width = method.width_in(d_model)
        self.act, self.drop = method.act, method.dropout
        self.down = Dense(d_model, width, (letter, "R"), init)
        self.up = Dense(width, d_model, ("R", letter), init)
        if self.stacked:
            stack(self.down, self.stacked)
            stack(self.up, self.stacked)

    def narrow(self, x: jax.Array) -> jax.Array:
        return self.dropped(self.up(ACTIVATIONS[self.act](self.down(x))), self.drop)


class BehindLayer(Narrow):
    """In the slot of an affine layer."""

    def __call__(self, x: jax.Array, layer: Dense) -> jax.Array:
        """[..., in] -> [..., D]."""
        y = layer.plain(x)
        return y + self.narrow(y)


class AfterFeedForward(Narrow):
    """In the slot of a block (layers.block.add)."""

    def __call__(self, x_BLD: jax.Array, fed_BLD: jax.Array, norm: Any) -> jax.Array:
        summed_BLD = x_BLD + fed_BLD
        seen_BLD = summed_BLD if norm is None else norm(summed_BLD)
        summed_BLD = x_BLD + (fed_BLD + self.narrow(seen_BLD))
        return summed_BLD if norm is None else norm(summed_BLD)
