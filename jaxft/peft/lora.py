"""LoRA: a kernel that stays, and beside it a product of two thin ones that trains (Hu et al. 2021)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.layers.dense import Dense, affine
from jaxft.layers.parameter import ones, zeros
from jaxft.peft import targets
from jaxft.peft.exchange import Module, Tensors, changed, check_shape, stacked, suffixes, taken
from jaxft.peft.methods import Adapter, Flat, Method
from jaxft.registry import UserError, inner

INITS = ("default", "gaussian", "pissa")
POWER = 16  # iterations of the subspace that PiSSA starts from; as many as peft's "pissa_niter_16"


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """U(-1, 1) / sqrt(inputs): what torch gives a linear layer (He et al. 2015, with a = sqrt(5))."""
    return jax.random.uniform(key, shape, jnp.float32, -1, 1) * shape[0] ** -0.5


def by_rank(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1 / rank)."""
    return jax.random.normal(key, shape, jnp.float32) / shape[1]


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """y = x W + scale * dropout(x) A B, with scale = alpha / rank.

    `rslora`: alpha / sqrt(rank) instead (Kalajdzievski 2023). `dora`: and each output is given a length of its own,
    which trains (Liu et al. 2024). `b_rate`: the learning rate of B is as many times that of A (LoRA+, Hayou et al.
    2024). `init`: how A begins, B being zero: "default" as in peft, "gaussian", or "pissa": A and B begin as the
    largest singular vectors of W, and what they compute at the beginning is taken off (Meng et al. 2024).
    """

    peft_type = "LORA"

    target: str | tuple = "attention"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    b_rate: float = 1.0
    init: str = "default"
    # Of an adapter that was read: what some layers have instead, path -> rank and alpha.
    ranks: Mapping[str, int] = inner(default_factory=dict)
    alphas: Mapping[str, float] = inner(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"peft.rank={self.rank} must be 1 or more")
        if not self.alpha > 0:
            raise UserError(f"peft.alpha={self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"peft.dropout={self.dropout} must be at least 0 and below 1")
        if self.init not in INITS:
            raise UserError(f"peft.init={self.init!r} must be one of: {', '.join(INITS)}")
        if self.b_rate <= 0:
            raise UserError(f"peft.b_rate={self.b_rate} must be above 0")
        if self.dora and self.init == "pissa":
            raise UserError("peft.dora=True with peft.init='pissa': choose one of them")

    def attach(self, model: Any) -> None:
        for path, layer in targets.chosen(model, self.target, head=bool(self.ranks)).items():
            rank = self.ranks.get(path, self.rank)
            inputs, outputs = layer.kernel.get_value().shape[-2:]
            if rank > min(inputs, outputs) and not self.ranks:
                raise UserError(
                    f"peft.rank={rank} is above a dimension of {path}, which is {inputs} x {outputs}; "
                    f"use {min(inputs, outputs)} or less"
                )
            layer.adapter = LoraAdapter(layer, rank, self.scale(path), self)

    def scale(self, path: str) -> float:
        rank, alpha = self.ranks.get(path, self.rank), self.alphas.get(path, self.alpha)
        return alpha / rank**0.5 if self.rslora else alpha / rank

    def rate(self, path: str) -> float:
        return self.b_rate if path.endswith("/adapter/b") else 1.0

    def started(self, params: Flat) -> Flat:
        made: Flat = {}
        for path, kernel in layers_with(params, "a"):
            if self.dora:
                made[f"{path}/adapter/length"] = lengths(kernel).astype(params[f"{path}/adapter/a"].dtype)
            if self.init == "pissa":
                a, b = principal(kernel, params[f"{path}/adapter/a"].shape[-1], self.scale(path))
                made |= {f"{path}/adapter/{name}": a for name in ("a", "fixed_a")}
                made |= {f"{path}/adapter/{name}": b for name in ("b", "fixed_b")}
        return made

    def merged(self, path: str, kernel: jax.Array, added: Flat) -> jax.Array:
        whole = kernel + self.scale(path) * _product(added["a"], added["b"])
        if "fixed_a" in added:
            whole -= self.scale(path) * _product(added["fixed_a"], added["fixed_b"])
        return whole * (added["length"] / lengths(whole))[..., None, :] if "length" in added else whole

    # ---- the format of peft ----

    def to_hub(
        self, modules: Sequence[Module], added: Mapping[str, np.ndarray], model: Any
    ) -> tuple[dict[str, Any], Tensors]:
        chosen = changed(modules, added, "a")
        ends = suffixes(chosen, modules)
        tensors: Tensors = {}
        for module in chosen:
            for index, name in module.named():
                tensors |= {f"{name}.{ending}": array for ending, array in self._joined(module, added, index).items()}
        ranks = {end: self._rank_of(module, added) for end, module in ends.items()}
        alphas = {
            end: self._scale_of(module) * (ranks[end] ** 0.5 if self.rslora else ranks[end])
            for end, module in ends.items()
        }
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(ends),
            "rank_pattern": {end: rank for end, rank in ranks.items() if rank != self.rank},
            "alpha_pattern": {end: alpha for end, alpha in alphas.items() if alpha != self.alpha},
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "bias": "none",
            "fan_in_fan_out": any(module.transposed for module in chosen),
            "init_lora_weights": True,
        }, tensors

    def _scale_of(self, module: Module) -> float:
        return self.scale(module.parts[0].path)

    @staticmethod
    def _rank_of(module: Module, added: Mapping[str, np.ndarray]) -> int:
        """Of the one product that stands for those of all parts, and for what PiSSA takes off."""
        names = [f"{part.path}/adapter/{name}" for part in module.parts for name in ("a", "fixed_a")]
        return sum(added[name].shape[-1] for name in names if name in added)

    def _joined(self, module: Module, added: Mapping[str, np.ndarray], index: tuple[int, ...]) -> Tensors:
        """A, B and lengths of one module: of several parts, their A one under another and their B in blocks."""
        rank = self._rank_of(module, added)
        a, b = np.zeros((rank, module.inputs), np.float32), np.zeros((module.outputs, rank), np.float32)
        lengths, at = [], 0
        for part in module.parts:
            for name, sign in (("", 1.0), ("fixed_", -1.0)):
                key = f"{part.path}/adapter/{name}"
                if f"{key}a" not in added:
                    continue
                own = slice(at, at + added[f"{key}a"].shape[-1])
                a[own] = added[f"{key}a"][index].T
                b[part.within, own] = added[f"{key}b"][index].T * (
                    sign * self.scale(part.path) / self._scale_of(module)
                )
                at = own.stop
            if self.dora:
                lengths.append(added[f"{part.path}/adapter/length"][index])
        found = {"lora_A.weight": a, "lora_B.weight": b}
        return found | ({"lora_magnitude_vector": np.concatenate(lengths)} if self.dora else {})

    @classmethod
    def from_hub(
        cls, section: Mapping[str, Any], tensors: Tensors, modules: Sequence[Module], folder: str, model: Any
    ) -> tuple[Self, Flat]:
        """The method that an adapter is of, and its parameters, which are taken out of `tensors`."""
        if section.get("init_lora_weights") not in (True, False, None, "gaussian", "eva", "orthogonal"):
            raise UserError(
                f"{folder}: init_lora_weights={section['init_lora_weights']!r} has changed the weights of its model, "
                "too; save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it"
            )
        rslora, dora = bool(section.get("use_rslora")), bool(section.get("use_dora"))
        ranks, alphas, added = {}, {}, {}
        for module in modules:
            a_of = taken(tensors, module.names, "lora_A.weight")
            b_of = taken(tensors, module.names, "lora_B.weight")
            length_of = taken(tensors, module.names, "lora_magnitude_vector") if dora else {}
            if not a_of and not b_of and not length_of:
                continue
            if a_of.keys() != b_of.keys() or (dora and a_of.keys() != length_of.keys()):
                what = "lora_A, lora_B and lora_magnitude_vector" if dora else "lora_A and lora_B"
                raise UserError(f"{folder} lacks some of {what} of {', '.join(module.names.values())}; save it again")
            if dora and len(a_of) < len(module.names):
                raise UserError(f"{folder}: DoRA of some layers of a stack only is not supported; merge it with peft")
            for index, a in a_of.items():
                check_shape(f"{module.names[index]}.lora_A.weight", a, (None, module.inputs), folder)
                check_shape(f"{module.names[index]}.lora_B.weight", b_of[index], (module.outputs, len(a)), folder)
            scales = {
                index: _pattern(section.get("alpha_pattern"), module.names[index], section["lora_alpha"])
                / (len(a) ** 0.5 if rslora else len(a))
                for index, a in a_of.items()
            }
            rank, scale = max(map(len, a_of.values())), next(iter(scales.values()))
            for part in module.parts:
                key = f"{part.path}/adapter/"
                ranks[part.path], alphas[part.path] = rank, scale * (rank**0.5 if rslora else rank)
                added[f"{key}a"] = stacked({at: a.T for at, a in a_of.items()}, module.names, (module.inputs, rank))
                b = {at: b[part.within].T * (scales[at] / scale) for at, b in b_of.items()}
                added[f"{key}b"] = stacked(b, module.names, (rank, part.outputs))
                if dora:
                    length = {at: length[part.within] for at, length in length_of.items()}
                    added[f"{key}length"] = stacked(length, module.names, (part.outputs,))
        options: dict[str, Any] = dict(
            rank=max(ranks.values(), default=1), alpha=float(section["lora_alpha"]), rslora=rslora, dora=dora
        )
        drop = float(section.get("lora_dropout", 0.0))
        return cls(target=tuple(ranks), dropout=drop, ranks=ranks, alphas=alphas, **options), added


def _pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """The value of the first pattern that a layer's name, or its end, matches; as peft has it."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


class LoraAdapter(Adapter):
    def __init__(self, layer: Dense, rank: int, scale: float, method: Lora):
        super().__init__(layer.kernel)
        (inputs, outputs), (i, o) = layer.kernel.get_value().shape[-2:], layer.kernel.get_metadata("axes")[-2:]
        self.scale, self.drop = scale, method.dropout
        self.a = self.parameter((inputs, rank), (i, "R"), by_rank if method.init == "gaussian" else fan_in_uniform)
        self.b = self.parameter((rank, outputs), ("R", o), zeros)
        self.length: Any = self.parameter((outputs,), (o,), ones) if method.dora else None
        pissa = method.init == "pissa"
        self.fixed_a: Any = self.parameter((inputs, rank), (i, "R"), zeros) if pissa else None
        self.fixed_b: Any = self.parameter((rank, outputs), ("R", o), zeros) if pissa else None

    def __call__(self, x: jax.Array, layer: Dense) -> jax.Array:
        """[..., in] -> [..., out]."""
        if self.length is not None:
            return self._dora(x, layer)
        return layer.plain(x) + self._thin(self.dropped(x, self.drop))

    def _thin(self, x: jax.Array) -> jax.Array:
        a, b = self.a[...], self.b[...]
        if self.fixed_a is not None:  # one product of twice the rank
            a = jnp.concatenate([a, jax.lax.stop_gradient(self.fixed_a[...])], 1)
            b = jnp.concatenate([b, -jax.lax.stop_gradient(self.fixed_b[...])], 0)
        return affine(affine(x, a.astype(x.dtype), None), (b * self.scale).astype(x.dtype), None)

    def _dora(self, x: jax.Array, layer: Dense) -> jax.Array:
        """Eq. 5 and 11 of Liu et al. 2024: the lengths of W + scale A B are constants of the gradient."""
        whole = layer.kernel[...].astype(jnp.float32) + self.scale * _product(self.a[...], self.b[...])
        share = (self.length[...] / jax.lax.stop_gradient(lengths(whole))).astype(x.dtype)
        dropped = self.dropped(x, self.drop)
        # Without dropout both are of one x; with it, as in peft, only what is added to the plain layer is of the other.
        share = share.reshape((1,) * (x.ndim - 1) + share.shape)
        if dropped is x:
            return layer.biased((layer.plain(x, bias=False) + self._thin(x)) * share)
        return layer.plain(x) + layer.plain(dropped, bias=False) * (share - 1) + self._thin(dropped) * share


def layers_with(params: Flat, name: str) -> list[tuple[str, jax.Array]]:
    """(path, kernel in float32) of the layers whose adapter has a parameter of that name."""
    ending = f"/adapter/{name}"
    paths = [path.removesuffix(ending) for path in params if path.endswith(ending)]
    return [(path, params[f"{path}/kernel"].astype(jnp.float32)) for path in paths]


def lengths(kernel: jax.Array) -> jax.Array:
    """The Euclidean length of each output's weights, [..., in, out] -> [..., out]."""
    return jnp.sqrt(jnp.square(kernel).sum(-2))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")


def principal(kernel: jax.Array, rank: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """A [..., in, rank] and B [..., rank, out] with scale A B the best approximation of that rank of the kernel.

    By subspace iteration from a fixed beginning (Halko et al. 2011, algorithm 4.4), since a whole decomposition takes
    minutes for each large kernel.
    """

    def one(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        def turn(q: jax.Array, _: None) -> tuple[jax.Array, None]:
            q, _r = jnp.linalg.qr(jnp.matmul(kernel.T, q, precision="highest"))
            q, _r = jnp.linalg.qr(jnp.matmul(kernel, q, precision="highest"))
            return q, None

        some = min(rank + 8, *kernel.shape)  # a few more than are wanted: then those that are, are exact
        first = jax.random.normal(jax.random.key(0), (kernel.shape[1], some), jnp.float32)
        q, _ = jax.lax.scan(turn, jnp.linalg.qr(jnp.matmul(kernel, first, precision="highest"))[0], None, length=POWER)
        u, s, v = jnp.linalg.svd(jnp.matmul(q.T, kernel, precision="highest"), full_matrices=False)
        root = jnp.sqrt(s[:rank] / scale)
        return jnp.matmul(q, u[:, :rank], precision="highest") * root[None], root[:, None] * v[:rank]

    mapped = jax.vmap(one) if kernel.ndim == 3 else one
    return jax.jit(mapped)(kernel)
