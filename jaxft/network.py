"""A network before it has numbers: what is known of it, and what it computes of parameters that it is given."""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft import sharding
from jaxft.hf.layout import rows
from jaxft.layers import frozen
from jaxft.layers.cache import Cache
from jaxft.layers.kernels import choice
from jaxft.layers.parameter import Init
from jaxft.layers.stack import Execution, apart
from jaxft.layers.trunk import Losses
from jaxft.layers.vocab import VocabLogits
from jaxft.peft.methods import SLOT, Method, give_keys, is_added


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
    peft: Method
    quantized: Mapping[str, str]  # kernels that are kept in few bits, and their kind (layers/frozen.py)
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
            own = self.own(params)
            logits, losses = self._model(own, key)(batch, key)
            losses = losses | self.peft.losses(flatten_dict(own, sep="/"))
        if isinstance(logits, VocabLogits):
            logits = dataclasses.replace(logits, vocab=self.cfg.vocab)
        return logits, losses

    def _model(self, params: Any, key: jax.Array | None = None) -> Any:
        stays = (lambda path: not self.trains(path)) if self.peft.frozen else (lambda path: False)
        model = nnx.merge(self.structure, frozen.seen(params, stays))
        if key is not None and self.added:
            give_keys(model, jax.random.fold_in(key, zlib.crc32(SLOT.encode())))
        return model

    def start(self, params: Any, batch: Mapping[str, jax.Array], room: int) -> tuple[jax.Array, Cache]:
        """Of rows that end together (layers.trunk, layers.encdec): logits_BV of what follows, and what is kept of them.

        `room` is for how many tokens more.
        """
        with self.tracing():
            logits, cache = self._model(params).start(batch, room)
            return dataclasses.replace(logits, vocab=self.cfg.vocab).array()[:, 0], cache

    def next(self, params: Any, batch: Mapping[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """The same after one more token of every row: ids, segment and position [B, 1]."""
        with self.tracing():
            logits, cache = self._model(params).next(batch, cache)
            return dataclasses.replace(logits, vocab=self.cfg.vocab).array()[:, 0], cache

    def apart(self, params: dict[str, Any], *, keep: bool = False) -> dict[str, Any]:
        """`params` as `start` and `next` read them without a copy; those given are no more, unless `keep`."""
        if "decoder" in params:
            blocks = apart(params["decoder"]["blocks"], keep=keep)
            return params | {"decoder": params["decoder"] | {"blocks": blocks}}
        return params | {"blocks": apart(params["blocks"], keep=keep)}

    @property
    def declared(self) -> Any:
        """The model itself, with shapes where its numbers belong."""
        return nnx.merge(self.structure, unflatten_dict(self.abstract, sep="/"))

    def own(self, params: Any) -> Any:
        """`params` of a run without the branches of companions."""
        return {name: branch for name, branch in params.items() if name not in self.companions}

    @property
    def tree(self) -> Any:
        """Shapes, dtypes and shardings of all parameters of a run, nested: its own and those of who trains along."""
        along = {name: beside for name, beside in self.companions.items() if beside.wish.trained}
        branches = {name: beside.apart(unflatten_dict(beside.net.abstract, sep="/")) for name, beside in along.items()}
        stored = {path: self._stored(path, leaf) for path, leaf in self.abstract.items()}
        return unflatten_dict(stored, sep="/") | branches

    def _stored(self, path: str, leaf: jax.ShapeDtypeStruct) -> Any:
        """How a run keeps a parameter: as it is, or as codes and scales."""
        if path not in self.quantized:
            return leaf
        *lead, inputs, out = [*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec))]
        return {
            name: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=self._blocks(one, P(*lead, inputs, None, out)))
            for name, one in frozen.shapes(leaf.shape, self.quantized[path]).items()
        }

    def _blocks(self, leaf: jax.ShapeDtypeStruct, spec: P) -> NamedSharding:
        """The sharding of a kernel for its blocks, which stay whole: on axes that divide them."""
        sizes = [sharding.devices(axes, self.mesh) for axes in spec]
        kept = [None if n % size else axes for n, size, axes in zip(leaf.shape, sizes, spec, strict=True)]
        return NamedSharding(self.mesh, P(*kept))

    @property
    def added(self) -> list[str]:
        """The parameters of the method of fine-tuning, beside those of the network that it changes."""
        return [path for path in self.abstract if is_added(path)]

    def trains(self, path: str) -> bool:
        """Whether the method has a parameter train; train.freeze may still keep it."""
        return path.partition("/")[0] in self.companions or self.peft.trains(path, self.head)

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
