"""The programs that write texts with a network, compiled once: tokens in, tokens out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from jaxft import sharding
from jaxft.generation import beam, settings, write
from jaxft.generation.settings import Settings
from jaxft.hf import generation as hf_generation
from jaxft.hf import load as hf_load
from jaxft.registry import UserError

SHORTEST = 16


class Texts:
    """Writes with the parameters that it is given, which `net.apart` has made ready, `batch` texts at once.

    `start` is the token that the decoder of an encoder-decoder begins with, None of a decoder alone. Prompts are filled
    up to `length` tokens, or a power of two, so that one program serves them all. `most` are the positions that the
    network has, None: any number.
    """

    def __init__(
        self, net: Any, settings: Settings, *, batch: int, start: int | None, seed: int, length: int = SHORTEST
    ):
        self.net, self.settings, self.start = net, settings, start
        model = nnx.merge(net.structure, unflatten_dict(net.abstract, sep="/"))
        self.most, self._turn = model.most, model.turn
        self._batch, self._length, self._rows = batch, length, 0
        self._where = sharding.batch_sharding(net.mesh, net.activations)
        self._loop: Any = beam if settings.beams > 1 else write
        self._begin = jax.jit(
            lambda params, batch, row_B: self._loop.begin(net, params, batch, write.keys(seed, row_B), settings)
        )
        self._go_on: Any = None
        self._whole = jax.jit(lambda ids: ids, out_shardings=sharding.replicated(net.mesh))

    def check(self, length: int, place: str) -> None:
        """Raises UserError for a prompt of `length` tokens, from `place`, that the network has no room for."""
        new = self.settings.new
        if not length:
            raise UserError(f"{place}: the prompt is empty; a text goes on from one token at least")
        written, end = f"{place}: a prompt of {length} tokens", length + new - 1
        needed = max(end, 1) if self.start is None else max(length, new)
        if self.most and needed > self.most:
            raise UserError(
                f"{written} with max_new_tokens={new} exceeds the {self.most} positions of the model; shorten the "
                "prompt, or set --max_new_tokens lower"
            )
        kind = self.net.cfg.rope["rope_type"] if self._turn else ""
        if self._turn and end > self._turn and (kind != "longrope" or length <= self._turn):
            raise UserError(
                f"{written} with max_new_tokens={new} passes {self._turn} tokens, beyond which rope_type={kind} gives "
                "every token other angles than those that are kept; shorten the prompt, or set --max_new_tokens lower"
            )

    def write(self, params: Any, prompts: Sequence[np.ndarray], first: int = 0) -> list[list[int]]:
        """The tokens after each prompt; `first` is the number of the first one, by which tokens are drawn.

        A prompt's text does not depend on the others.
        """
        order = sorted(range(len(prompts)), key=lambda i: (self._beyond(prompts[i]), len(prompts[i])))
        found: list[list[int]] = [[] for _ in prompts]
        for chosen in self._batches(order, prompts):
            now = self.begin(params, [prompts[i] for i in chosen], [first + i for i in chosen])
            now = self.go_on(params, now, self.settings.new)
            best = now.best_ids_BUM[:, 0] if isinstance(now, beam.Beams) else now.ids_BM
            written = np.asarray(self._whole(best))
            for row, i in enumerate(chosen):
                found[i] = self.ended(written[row, -self.settings.new :])
        return found

    def begin(self, params: Any, prompts: Sequence[np.ndarray], numbers: Sequence[int]) -> Any:
        """Texts of one token; `numbers` are those of the prompts."""
        shards = sharding.batch_shards(self.net.mesh, self.net.activations)
        self._rows = max(self._rows, -(-len(prompts) // shards) * shards)  # as before: the programs are there
        longest = max(map(len, prompts))
        length = self._length if longest <= self._length else 1 << (longest - 1).bit_length()
        batch = {name: np.zeros((self._rows, length), np.int32) for name in ("ids", "segment", "position")}
        for row, ids in enumerate(prompts):
            # A text goes on where its row ends; a source is read as in training.
            place = slice(length - len(ids), length) if self.start is None else slice(len(ids))
            batch["ids"][row, place], batch["segment"][row, place] = ids, 1
            batch["position"][row, place] = np.arange(len(ids))
        if self.start is not None:
            one = np.ones((self._rows, 1), np.int32)
            batch |= {"target_ids": one * self.start, "target_segment": one, "target_position": one * 0}
        row_B = np.array([*numbers, *[0] * (self._rows - len(numbers))], np.uint32)
        return self._begin(params, {name: self._placed(array) for name, array in batch.items()}, self._placed(row_B))

    def _placed(self, array: np.ndarray) -> jax.Array:
        """On all devices an array that each process has whole."""
        return jax.make_array_from_callback(array.shape, self._where, array.__getitem__)

    def go_on(self, params: Any, now: Any, until: int) -> Any:
        """`now`, which is no more, with texts of `until` tokens, or their ends."""
        if self._go_on is None:
            self._go_on = jax.jit(
                lambda params, now, until: self._loop.go_on(self.net, params, now, until, self.settings),
                donate_argnums=1,
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, now),  # or the next call would be another one
            )
        return self._go_on(params, now, until)

    def ended(self, ids: np.ndarray) -> list[int]:
        """`ids` before the token that ends the text, if there is one."""
        ends = np.flatnonzero(np.isin(ids, self.settings.eos))
        return ids[: ends[0]].tolist() if len(ends) else ids.tolist()

    def _beyond(self, ids: np.ndarray) -> bool:
        return self._turn is not None and len(ids) > self._turn

    def _batches(self, order: Sequence[int], prompts: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """`order` in groups that can be written together."""
        group: list[int] = []
        for i in order:
            if group and (len(group) == self._batch or self._beyond(prompts[i]) != self._beyond(prompts[group[-1]])):
                yield group
                group = []
            group.append(i)
        if group:
            yield group


def wanted(folder: Path) -> dict[str, Any]:
    """How a hub folder says that its texts are written: generation_config.json over an older config.json."""
    known = settings.READ | set(settings.FIXED) | {"decoder_start_token_id"}
    hf = hf_load.read_config(folder)
    return {name: value for name, value in hf.items() if name in known} | hf_generation.read(folder)
