"""AdaLoRA: triplets of a singular value and its two vectors, as many a layer as matter there (Zhang et al. 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config import steps
from jaxft.layers.dense import Dense, affine
from jaxft.layers.parameter import Normal, zeros
from jaxft.peft import targets
from jaxft.peft.exchange import PREFIX, Module, Tensors, changed, check_shape, stacked, suffixes, taken
from jaxft.peft.methods import Adapter, Flat, Method
from jaxft.peft.pruning import Schedule, pruned
from jaxft.registry import UserError, inner

TINY = 1e-5  # peft divides by this more than the rank


@dataclass(frozen=True, kw_only=True)
class AdaLora(Method):
    """y = x W + scale * dropout(x) A diag(e) B, with scale = alpha / init_rank also when triplets are gone.

    A layer begins with `init_rank` triplets (A's column, e, B's row), and the run ends with `target_rank` a layer on
    average: pruning.py says which, and when. Of `tinit`, `tfinal` and `delta_t`, durations such as "500 steps" or "10%"
    of the run, the first is before anything is pruned, the second at the end, when the ranks stay as they are, and the
    third from one pruning to the next. `beta1` and `beta2` smooth the importance of a number, and how much that varies.
    `orth`: the weight of the loss that keeps vectors orthogonal (eq. 4), a mean over all A and B as in peft.
    An average of weights (train.ema) has no zeros where a triplet went: it is exported with those ranks as well.
    """

    peft_type = "ADALORA"

    target: str | tuple = "attention"
    init_rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    tinit: int | str = "10%"
    tfinal: int | str = "30%"
    delta_t: int | str = "1%"
    beta1: float = 0.85
    beta2: float = 0.85
    orth: float = 0.5
    total: int = inner(default=0)  # steps of the run, which for_run says; 0: there is none
    read: bool = inner(default=False)  # of an adapter that was read, whose ranks are what they are

    def __post_init__(self) -> None:
        if not 1 <= self.target_rank <= self.init_rank and not self.read:
            raise UserError(
                f"peft.target_rank={self.target_rank} must be 1 or more, and at most peft.init_rank={self.init_rank}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"peft.dropout={self.dropout} must be at least 0 and below 1")
        if not self.alpha > 0:
            raise UserError(f"peft.alpha={self.alpha} must be above 0")
        if not self.orth >= 0:
            raise UserError(f"peft.orth={self.orth} must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"peft.{name}={getattr(self, name)} must be above 0 and below 1")
        self.schedule(1000)  # a duration with a mistake is refused before anything starts

    def schedule(self, total: int) -> Schedule:
        def made(field: str) -> int:
            duration = getattr(self, field)
            if isinstance(duration, bool) or not isinstance(duration, (int, str)):
                raise UserError(f'peft.{field}={duration!r}: write "500 steps" or "10%"')
            if "epoch" in str(duration):
                raise UserError(f'peft.{field}={duration!r}: write "500 steps" or "10%"')
            return steps(str(duration), f"peft.{field}", per_epoch=0.0, total=total)

        return Schedule(total, made("tinit"), made("tfinal"), max(made("delta_t"), 1))

    def for_run(self, total: int) -> Self:
        plan = self.schedule(total)
        if plan.tinit >= total - plan.tfinal:
            raise UserError(
                f"AdaLoRA schedule longer than the run: peft.tinit={self.tinit!r} ({plan.tinit} steps) and peft.tfinal="
                f"{self.tfinal!r} ({plan.tfinal}) leave none of {total} steps to prune in; give percentages that "
                "add up to less than 100, or raise train.duration"
            )
        if plan.delta_t > total - plan.tfinal - plan.tinit:
            raise UserError(
                f"AdaLoRA schedule longer than the run: peft.delta_t={self.delta_t!r} ({plan.delta_t} steps) is more "
                f"than the {total - plan.tfinal - plan.tinit} between peft.tinit and peft.tfinal; give less"
            )
        return replace(self, total=total)

    def attach(self, model: Any) -> None:
        for path, layer in targets.chosen(model, self.target, head=self.read).items():
            inputs, outputs = layer.kernel.get_value().shape[-2:]
            if self.init_rank > min(inputs, outputs) and not self.read:
                raise UserError(
                    f"peft.init_rank={self.init_rank} is above a dimension of {path}, which is {inputs} x {outputs}; "
                    f"use {min(inputs, outputs)} or less"
                )
            layer.adapter = AdaLoraAdapter(layer, self)

    @property
    def scale(self) -> float:
        return self.alpha / (self.init_rank + TINY)

    def optimizer(self, tx: Any) -> Any:
        schedule = self.schedule(self.total) if self.total else None
        return pruned(tx, schedule, target_rank=self.target_rank, beta1=self.beta1, beta2=self.beta2)

    def losses(self, params: Flat) -> dict[str, tuple[jax.Array, jax.Array]]:
        """||A^T A - I|| and ||B B^T - I||, summed over layers, and how many they are; times `orth`."""
        if not self.orth:
            return {}
        a = [leaf for path, leaf in params.items() if path.endswith("/adapter/a")]
        b = [jnp.swapaxes(leaf, -1, -2) for path, leaf in params.items() if path.endswith("/adapter/b")]
        norms = [_apart(vectors) for vectors in (*a, *b)]
        total = jnp.stack([norm.sum() for norm in norms]).sum()
        return {"orthogonality": (self.orth * total, jnp.float32(sum(norm.size for norm in norms)))}

    def merged(self, path: str, kernel: jax.Array, added: Flat) -> jax.Array:
        a, e, b = (added[name].astype(jnp.float32) for name in "aeb")
        return kernel + self.scale * jnp.matmul(a * e[..., None, :], b, precision="highest")

    # ---- the format of peft ----

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        """With the triplets that are left. Where a layer of the hub is several here, it has the triplets of all.

        Of an adapter that has learned nothing, whose e are all zero, with all of them.
        """
        chosen = changed(modules, added, "e")
        fresh = not any(added[f"{part.path}/adapter/e"].any() for part in _parts(chosen, added))
        joined = {
            name: _joined(module, added, index, fresh) for module in chosen for index, name in module.names.items()
        }
        # One rank for all that a layer begins with, of which rank_pattern says which are left; alpha keeps the scale.
        rank = max(self.init_rank, *(len(one.kept) for one in joined.values()))
        tensors = {f"{PREFIX}{name}.{end}": array for name, one in joined.items() for end, array in one.tensors.items()}
        pattern = {f"{name}.lora_E": one.mask(rank) for name, one in joined.items()}
        plan = self.schedule(self.total) if self.total else Schedule(1, 0, 0, 1)
        return {
            "init_r": rank,
            "target_r": self.target_rank,
            "lora_alpha": self.scale * (rank + TINY) if rank != self.init_rank else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(suffixes(chosen, modules)),
            "tinit": plan.tinit,
            "tfinal": plan.tfinal,
            "deltaT": plan.delta_t,
            "total_step": plan.total,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "orth_reg_weight": self.orth,
            "rank_pattern": None if all(all(mask) for mask in pattern.values()) else pattern,
            "bias": "none",
            "fan_in_fan_out": any(module.transposed for module in chosen),
            "init_lora_weights": True,
        }, tensors

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        known = {field: value for field, value in section.items() if value is not None}
        rank, pattern = int(known["init_r"]), known.get("rank_pattern", {})
        added, paths = {}, []
        for module in modules:
            a_of, b_of, e_of = (taken(tensors, module.names, f"lora_{letter}") for letter in "ABE")
            if not a_of:
                continue
            places = {}
            for index, a in a_of.items():
                name = module.names[index]
                check_shape(f"{name}.lora_A", a, (None, module.inputs), folder)
                check_shape(f"{name}.lora_B", b_of[index], (module.outputs, len(a)), folder)
                check_shape(f"{name}.lora_E", e_of[index], (len(a), 1), folder)
                places[index] = _places(pattern, name, rank, len(a), folder)
            for part in module.parts:
                key = f"{part.path}/adapter/"
                own = {at: _spread(a_of[at], b_of[at][part.within], e_of[at], places[at], rank) for at in a_of}
                for letter, shape in (("a", (module.inputs, rank)), ("b", (rank, part.outputs)), ("e", (rank,))):
                    arrays = {at: triplets[letter] for at, triplets in own.items()}
                    added[key + letter] = stacked(arrays, module.names, shape)
                paths.append(part.path)
        given = {
            "target_rank": "target_r",
            "dropout": "lora_dropout",
            "tinit": "tinit",
            "tfinal": "tfinal",
            "delta_t": "deltaT",
            "beta1": "beta1",
            "beta2": "beta2",
            "orth": "orth_reg_weight",
            "total": "total_step",
        }
        options = {name: known[field] for name, field in given.items() if field in known}
        alpha = float(known["lora_alpha"])
        return cls(
            target=tuple(paths), init_rank=rank, alpha=alpha if alpha > 0 else float(rank), read=True, **options
        ), added


@dataclass(frozen=True)
class Joined:
    """The triplets that a layer of the hub has left, and which of those that it began with they are."""

    tensors: Tensors
    kept: np.ndarray  # bool

    def mask(self, rank: int) -> list[bool]:
        return [*map(bool, self.kept), *[False] * (rank - len(self.kept))]


def _joined(module: Module, added: Mapping[str, np.ndarray], index: tuple[int, ...], fresh: bool) -> Joined:
    """Of several parts: their A one under another, their B in blocks, and no more said than how many there are."""
    parts, masks, rows, columns, values = _parts([module], added), [], [], [], []
    for part in parts:
        a, b, e = (added[f"{part.path}/adapter/{name}"][index] for name in "abe")
        kept = np.ones(len(e), bool) if fresh else e != 0
        block = np.zeros((module.outputs, kept.sum()), np.float32)
        block[part.within] = b[kept].T
        masks.append(kept)
        rows.append(a[:, kept].T)
        columns.append(block)
        values.append(e[kept, None])
    tensors = {"lora_A": np.concatenate(rows), "lora_B": np.concatenate(columns, 1), "lora_E": np.concatenate(values)}
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    return Joined(tensors, masks[0] if len(module.parts) == 1 else np.ones(len(tensors["lora_E"]), bool))


def _parts(modules: Sequence[Module], added: Mapping[str, np.ndarray]) -> list[Any]:
    return [part for module in modules for part in module.parts if f"{part.path}/adapter/e" in added]


def _places(pattern: Mapping[str, list[bool]], name: str, rank: int, left: int, folder: str) -> np.ndarray:
    """Which of the `rank` triplets that a layer began with the `left` ones are."""
    mask = pattern.get(f"{name}.lora_E", pattern.get(f"{name}.lora_E.default", [True] * left))
    places = np.flatnonzero(mask)
    if len(places) != left or len(mask) > rank:
        raise UserError(
            f"{folder}: rank_pattern has {len(places)} of {len(mask)} triplets for {name}, and init_r is {rank}, but "
            f"its lora_A has {left} rows; save the adapter again"
        )
    return places


def _spread(a: np.ndarray, b: np.ndarray, e: np.ndarray, places: np.ndarray, rank: int) -> Tensors:
    """A [left, in], B [out, left] and E [left, 1] of peft as they are here, zeros where a triplet is gone.

    Gone as well are those that are of other parts of one layer of the hub: their B is zero here.
    """
    whole = {
        "a": np.zeros((a.shape[1], rank), np.float32),
        "b": np.zeros((rank, len(b)), np.float32),
        "e": np.zeros(rank, np.float32),
    }
    whole["a"][:, places], whole["b"][places], whole["e"][places] = a.T, b.T, e[:, 0] * b.any(0)
    return whole


class AdaLoraAdapter(Adapter):
    def __init__(self, layer: Dense, method: AdaLora):
        super().__init__(layer.kernel)
        (inputs, outputs), (i, o) = layer.kernel.get_value().shape[-2:], layer.kernel.get_metadata("axes")[-2:]
        self.scale, self.drop, rank = method.scale, method.dropout, method.init_rank
        self.a = self.parameter((inputs, rank), (i, "R"), Normal(0.02))
        self.e = self.parameter((rank,), ("R",), zeros)
        self.b = self.parameter((rank, outputs), ("R", o), Normal(0.02))

    def __call__(self, x: jax.Array, layer: Dense) -> jax.Array:
        """[..., in] -> [..., out]."""
        a = (self.a[...] * self.e[...][None]).astype(x.dtype)
        b = (self.b[...] * self.scale).astype(x.dtype)
        return layer.plain(x) + affine(affine(self.dropped(x, self.drop), a, None), b, None)


def _apart(vectors: jax.Array) -> jax.Array:
    """How far columns [..., size, R] are from orthonormal ones, [...]: the Frobenius norm of V^T V - I."""
    vectors = vectors.astype(jnp.float32)
    gram = jnp.matmul(jnp.swapaxes(vectors, -1, -2), vectors, precision="highest")
    identity = jnp.eye(gram.shape[-1]).reshape((1,) * (gram.ndim - 2) + gram.shape[-2:])
    # A root has no derivative at 0, where all is well.
    return jnp.sqrt(jnp.maximum(jnp.square(gram - identity).sum((-1, -2)), 1e-30))
