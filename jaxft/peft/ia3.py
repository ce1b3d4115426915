"""(IA)^3: what some layers give, or get, is scaled by vectors that train (Liu et al. 2022)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.dense import Dense
from jaxft.layers.mlp import GatedMlp, Mlp
from jaxft.layers.parameter import ones
from jaxft.peft import targets
from jaxft.peft.exchange import Module, Tensors, check_shape, stacked, suffixes, taken
from jaxft.peft.methods import Adapter, Flat, Method
from jaxft.registry import UserError

OUT, INTO = "scale", "into"  # names below a slot: [out] of what a layer gives, [in] of what it gets
TENSOR = "ia3_l"


@dataclass(frozen=True, kw_only=True)
class Ia3(Method):
    """y = (x W + b) * l for the layers of `target`, y = (x * l) W + b for those of `feedforward`; l begins as ones.

    `target`: "keys-values" of every attention, or as of other methods. `feedforward`: "down", the last layer of every
    MLP that has layers (a mixture of experts has none), or as of other methods; () for no layer.
    """

    peft_type = "IA3"

    target: str | tuple = "keys-values"
    feedforward: str | tuple = "down"

    def attach(self, model: Any) -> None:
        out = _chosen(model, self.target, "keys-values", _keys_values, "peft.target")
        into = _chosen(model, self.feedforward, "down", _down, "peft.feedforward")
        if both := sorted(set(out) & set(into)):
            raise UserError(
                f"peft.target={self.target!r} and peft.feedforward={self.feedforward!r} both name {', '.join(both)}; "
                "a layer has its outputs scaled or its inputs, so leave it out of one of them"
            )
        if not out and not into:
            raise UserError("peft.target=() and peft.feedforward=() name no layer; give one of them")
        for path, layer in (out | into).items():
            layer.adapter = Ia3Adapter(layer, into=path in into)

    def merged(self, path: str, kernel: jax.Array, added: Flat) -> jax.Array:
        return kernel * added[OUT][..., None, :] if OUT in added else kernel * added[INTO][..., :, None]

    def merged_bias(self, path: str, bias: jax.Array, added: Flat) -> jax.Array:
        return bias * added[OUT] if OUT in added else bias

    # ---- the format of peft ----

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        """A layer that is several here has ones for those of them that are not scaled.

        Raises UserError where those have different vectors for the inputs that they share there.
        """
        out = [module for module in modules if _has(module, added, OUT)]
        into = [module for module in modules if _has(module, added, INTO)]
        tensors: Tensors = {}
        for module in out:
            for index, name in module.named():
                tensors[f"{name}.{TENSOR}"] = _outputs(module, added, index)[:, None]
        for module in into:
            for index, name in module.named():
                tensors[f"{name}.{TENSOR}"] = _inputs(module, added, index)[None]
        ends, forward = suffixes([*out, *into], modules), suffixes(into, modules)
        if _misread(forward, out):
            ends, forward = ({name: m for m in chosen for name in m.names.values()} for chosen in ([*out, *into], into))
        return {
            "target_modules": sorted(ends),
            "feedforward_modules": sorted(forward),
            "fan_in_fan_out": any(module.transposed for module in (*out, *into)),
            "init_ia3_weights": True,
        }, tensors

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        added: Flat = {}
        paths: dict[str, list[str]] = {OUT: [], INTO: []}
        for module in modules:
            found = taken(tensors, module.names, TENSOR)
            if not found:
                continue
            ways = {INTO if vector.shape == (1, module.inputs) else OUT for vector in found.values()}
            if len(ways) > 1:
                raise UserError(
                    f"{folder}: {TENSOR} scales the inputs of some of {', '.join(module.names.values())} and the "
                    "outputs of others; here they are one stack of layers, and have to be alike"
                )
            way = ways.pop()
            for index, vector in found.items():
                wanted = (1, module.inputs) if way == INTO else (module.outputs, 1)
                check_shape(f"{module.names[index]}.{TENSOR}", vector, wanted, folder)
            for part in module.parts:
                within = slice(None) if way == INTO else part.within
                vectors = {index: vector.ravel()[within] for index, vector in found.items()}
                size = module.inputs if way == INTO else part.outputs
                added[f"{part.path}/adapter/{way}"] = stacked(vectors, module.names, (size,), fill=1.0)
                paths[way].append(part.path)
        return cls(target=tuple(paths[OUT]), feedforward=tuple(paths[INTO])), added


def _chosen(
    model: Any, wanted: str | tuple, kind: str, of_kind: Callable[[Any], dict[str, Dense]], field: str
) -> dict[str, Dense]:
    """Path -> layer, of the method's own kind or of those that every method has; () for none."""
    if wanted == ():
        return {}
    return of_kind(model) if wanted == kind else targets.chosen(model, wanted, field)


def _keys_values(model: Any) -> dict[str, Dense]:
    return {f"{path}/{name}": getattr(layer, name) for path, layer in targets.attention(model).items() for name in "kv"}


def _down(model: Any) -> dict[str, Dense]:
    return {f"{path}/down": layer.down for path, layer in targets.modules(model, (Mlp, GatedMlp)).items()}


def _has(module: Module, added: Mapping[str, np.ndarray], name: str) -> bool:
    return any(f"{part.path}/adapter/{name}" in added for part in module.parts)


def _outputs(module: Module, added: Mapping[str, np.ndarray], index: tuple[int, ...]) -> np.ndarray:
    whole = np.ones(module.outputs, np.float32)
    for part in module.parts:
        if (name := f"{part.path}/adapter/{OUT}") in added:
            whole[part.within] = added[name][index]
    return whole


def _inputs(module: Module, added: Mapping[str, np.ndarray], index: tuple[int, ...]) -> np.ndarray:
    names = [f"{part.path}/adapter/{INTO}" for part in module.parts]
    one = np.ones(module.inputs, np.float32)
    vectors = [added[name][index] if name in added else one for name in names]
    mixed = any(f"{part.path}/adapter/{OUT}" in added for part in module.parts)
    if mixed or any((vector != vectors[0]).any() for vector in vectors):
        raise UserError(
            f"{', '.join(part.path for part in module.parts)} are one layer in the format of peft, whose inputs have "
            "one vector alone; export the merged model"
        )
    return np.asarray(vectors[0])


def _misread(forward: Mapping[str, Module], out: Sequence[Module]) -> bool:
    """Whether peft, which asks how a name ends and not how its last part does, would scale inputs of one of `out`."""
    return any(name.endswith(end) for end in forward for module in out for name in module.names.values())


class Ia3Adapter(Adapter):
    def __init__(self, layer: Dense, *, into: bool):
        super().__init__(layer.kernel)
        shape, axes = layer.kernel.get_value().shape[-2:], layer.kernel.get_metadata("axes")[-2:]
        self.scale = None if into else self.parameter(shape[1:], axes[1:], ones)
        self.into = self.parameter(shape[:1], axes[:1], ones) if into else None

    def __call__(self, x: jax.Array, layer: Dense) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = layer.plain(x if self.into is None else _scaled(x, self.into[...]))
        return y if self.scale is None else _scaled(y, self.scale[...])


def _scaled(x: jax.Array, by: jax.Array) -> jax.Array:
    """Each of the last dimension times its own number, in the dtype of `x`."""
    return x * jnp.expand_dims(by.astype(x.dtype), tuple(range(x.ndim - 1)))
