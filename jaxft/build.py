"""From config to network: structure, shapes, shardings, and parameters that are never whole on one device."""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from jaxft.hf.layout import rows
from jaxft.layers.cache import Cache
from jaxft.layers.kernels import choice
from jaxft.layers.parameter import Init
from jaxft.layers.stack import Execution, apart
from jaxft.layers.trunk import Losses
from jaxft.layers.vocab import VocabLogits
from jaxft.models import ABSENT, MODELS
from jaxft.registry import UserError, check_options, lookup

# Tables over the vocabulary get rows up to a multiple of this, so that every usual tensor axis divides them and
# checkpoints have one shape on every mesh. The rows are zero, no id names them and no logit comes of them.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Network:
    """What is known of a model before it has numbers."""

    family: Any  # the module of models/ that declares it
    cfg: Any  # its Config
    head: str
    structure: Any  # nnx graph definition
    abstract: dict[str, jax.ShapeDtypeStruct]  # parameter path "blocks/attn/q/kernel" -> shape, dtype, sharding
    axes: dict[str, tuple[str, ...]]  # the letters of each
    stored: dict[str, tuple[int, ...]]  # shapes on the hub, without the rows that fill up the vocabulary
    inits: dict[str, Init]
    mesh: Mesh
    activations: sharding.Rules
    how: Execution
    unsharded: tuple[str, ...]  # parameters that a rule would shard but whose size does not divide
    companions: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # companions.py; most networks have none

    def forward(self, params: Any, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """The head's logits in float32, such as logits_BSC; for use inside jit."""
        with self.tracing():
            logits, _ = self.forward_with_losses(params, batch, key)
            return logits.array() if isinstance(logits, VocabLogits) else logits

    def forward_with_losses(
        self, params: Any, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Losses]:
        """The same, those over a vocabulary as VocabLogits, and what the network adds to the loss of its task.

        The latter is name -> (sum, weight).
        """
        with self.tracing():
            logits, losses = nnx.merge(self.structure, self.own(params))(batch, key)
        if isinstance(logits, VocabLogits):
            logits = dataclasses.replace(logits, vocab=self.cfg.vocab)
        return logits, losses

    def start(self, params: Any, batch: Mapping[str, jax.Array], room: int) -> tuple[jax.Array, Cache]:
        """Of rows that end together (layers.trunk, layers.encdec): logits_BV of what follows, and what is kept of them.

        `room` is for how many tokens more.
        """
        with self.tracing():
            logits, cache = nnx.merge(self.structure, params).start(batch, room)
            return dataclasses.replace(logits, vocab=self.cfg.vocab).array()[:, 0], cache

    def next(self, params: Any, batch: Mapping[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """The same after one more token of every row: ids, segment and position [B, 1]."""
        with self.tracing():
            logits, cache = nnx.merge(self.structure, params).next(batch, cache)
            return dataclasses.replace(logits, vocab=self.cfg.vocab).array()[:, 0], cache

    def apart(self, params: dict[str, Any], *, keep: bool = False) -> dict[str, Any]:
        """`params` as `start` and `next` read them without a copy; those given are no more, unless `keep`."""
        if "decoder" in params:
            blocks = apart(params["decoder"]["blocks"], keep=keep)
            return params | {"decoder": params["decoder"] | {"blocks": blocks}}
        return params | {"blocks": apart(params["blocks"], keep=keep)}

    def own(self, params: Any) -> Any:
        """`params` of a run without the branches of companions."""
        return {name: branch for name, branch in params.items() if name not in self.companions}

    @property
    def tree(self) -> Any:
        """Shapes, dtypes and shardings of all parameters of a run, nested: its own and those of who trains along."""
        along = {name: beside for name, beside in self.companions.items() if beside.wish.trained}
        branches = {name: beside.apart(unflatten_dict(beside.net.abstract, sep="/")) for name, beside in along.items()}
        return unflatten_dict(self.abstract, sep="/") | branches

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """What must hold while the network is traced, and a loss of logits over a vocabulary."""
        # GPUs and TPUs multiply float32 in fewer bits unless told otherwise; who asks for float32 gets it.
        precision = jax.default_matmul_precision("float32" if self.how.dtype == jnp.float32 else None)
        with precision, sharding.activations(self.mesh, self.activations), choice.wished(self.how.attention):
            yield

    @property
    def table(self) -> dict[str, tuple[str, str]]:
        """Parameter path -> (hub name, layout), trunk and head; without rows of what this Config does not have."""
        table = {**self.family.HF, **self.family.HF_HEADS[self.head]}
        return {path: row for path, row in table.items() if path in self.abstract}

    @property
    def prefixes(self) -> list[str]:
        """What names of the trunk's tensors may begin with: some heads call it otherwise, and a bare one has none."""
        first, trunk = self.family.HF_PREFIX, self.family.HF
        bare = {path: name.removeprefix(first) for path, (name, _) in trunk.items()}
        moved = [(path, name) for rows in self.family.HF_HEADS.values() for path, (name, _) in rows.items()]
        return list(dict.fromkeys([first, *(name.removesuffix(bare[path]) for path, name in moved if path in trunk)]))

    @property
    def tied(self) -> dict[str, str]:
        """Hub names of copies that a checkpoint may hold -> the tensor that each is a copy of."""
        names = {name for row in rows(self.table).values() for name in (row.name, *row.also)}
        return {copy: of for copy, of in self.family.HF_TIED.get(self.head, {}).items() if copy not in names}

    @property
    def lent(self) -> dict[str, str]:
        """Hub names of tensors that a checkpoint may lack -> the one that each then begins as."""
        return getattr(self.family, "HF_LENT", {}).get(self.head, {})

    def sizes(self) -> dict[str, int]:
        """Parameters by top-level group."""
        groups: dict[str, int] = {}
        for path, shape in self.stored.items():
            group = path.split("/")[0]
            groups[group] = groups.get(group, 0) + math.prod(shape)
        return groups


def network(
    family: Any, cfg: Any, *, head: str, outputs: int, model: ModelSection, rules: ShardingSection, mesh: Mesh
) -> Network:
    """Declares the model of `cfg` with a `head` of `outputs` logits on `mesh`. Allocates nothing."""
    machine = choice.Machine.of(mesh.devices.flat[0])
    dtype = ("float32" if machine.platform == "cpu" else "bfloat16") if model.dtype == "auto" else model.dtype
    cut = sharding.pieces("L", rules.activations, mesh)
    if reason := choice.needs(model.attention, machine, dtype, cut):
        raise UserError(f'model.attention="{model.attention}" {reason}; use "auto"')
    how = Execution(dtype=jnp.dtype(dtype), scan=model.scan, remat=model.remat, attention=model.attention)
    filled = dataclasses.replace(cfg, vocab=_filled_up(cfg.vocab, rules.params, mesh)) if cfg.vocab else cfg
    structure, state = nnx.split(family.Model(filled, head, outputs, how))
    declared = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    abstract, letters, stored, inits, unsharded = {}, {}, {}, {}, []
    for path, variable in declared.items():
        shape, axes = variable.get_value().shape, variable.get_metadata("axes")
        where = sharding.parameter_sharding(shape, axes, rules.params, mesh)
        abstract[path] = jax.ShapeDtypeStruct(shape, jnp.dtype(model.param_dtype), sharding=where)
        letters[path] = axes
        stored[path] = tuple(cfg.vocab if axis == "V" else n for n, axis in zip(shape, axes, strict=True))
        inits[path] = variable.get_metadata("init")
        if sum(letter not in sharding.STACKED for letter in axes) > 1:
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
        inits=inits,
        mesh=mesh,
        activations=rules.activations,
        how=how,
        unsharded=tuple(unsharded),
    )


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


def parameters(net: Network, folder: Path | None, seed: int, reset_head: bool) -> tuple[Any, list[str]]:
    """(nested parameters, what there is to say): hub weights from `folder` where given, random ones for the rest."""
    if folder is None:
        return unflatten_dict(initialise(net, seed), sep="/"), []
    head = {path for path in net.abstract if path.startswith("head/")}
    loaded, report = hf_load.load(
        folder,
        net.table,
        unflatten_dict(net.abstract, sep="/"),
        prefixes=net.prefixes,
        ignore=net.family.HF_IGNORE,
        other=net.family.HF_OTHER,
        legacy=net.family.HF_LEGACY,
        optional=head,
        reset=head if reset_head else set(),
        tied=net.tied,
        lent=net.lent,
        shapes=net.stored,
    )
    flat = flatten_dict(loaded, sep="/")
    new = [path for path in net.abstract if path not in flat]
    said = [f"new, not in the checkpoint: {', '.join(new)}"] if new else []
    said += [f"dropped, of another head: {', '.join(report.dropped)}"] if report.dropped else []
    return unflatten_dict(flat | initialise(net, seed, new), sep="/"), said
