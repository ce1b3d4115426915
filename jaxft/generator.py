"""A hub folder, ready to write texts: what generate runs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from jaxft import build, sharding
from jaxft.config import Model, Sharding
from jaxft.generation import beam, settings, write
from jaxft.hf import generation as hf_generation
from jaxft.hf import hub, tokenizer
from jaxft.hf import load as hf_load
from jaxft.registry import UserError

# Rows over `data`; over `tensor` what each device computes of every row.
RULES = Sharding(
    dict(V="tensor", F="tensor", HK="tensor", GK="tensor"),
    dict(B="data", V="tensor", F="tensor", H="tensor", G="tensor"),
)
SHORTEST = 16  # prompts are filled up to this length, or a power of two: one program serves many lengths


class Generator:
    """Network, parameters, tokenizer and settings of a hub folder, on all devices."""

    def __init__(self, source: str, flags: Mapping[str, Any], *, dtype: str, batch: int, tensor: int, seed: int):
        """`flags` stand over generation_config.json (settings.read); `batch` is the most rows that are written at once,
        `tensor` the number of devices that share one row. `said` is what there is to say."""
        folder = hub.resolve(source)
        hf = hf_load.read_config(folder)
        mesh = _mesh(tensor)
        if dtype == "auto":
            dtype = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
        section = _section(hf["model_type"], source, dtype)
        family = build.family_of(section, hf)
        if hf_generation.HEADS.get(family.KIND) not in family.HF_HEADS:
            raise UserError(f"{source} is a {family.MODEL_TYPE} model, which does not write texts; see jaxft.predict")
        self.encoder = tokenizer.load(folder)
        _, cfg = build.family_config(section, hf, pad_id=self.encoder.pad_id)
        tokenizer.check_vocab(self.encoder, cfg.vocab)
        wanted = _wanted(folder, hf)
        self.decoder = family.KIND == "decoder"
        self._start = None if self.decoder else wanted.get("decoder_start_token_id", cfg.start_id)
        end = self.encoder.named.get("eos_token")
        self.settings, self.said = settings.read(
            wanted, flags, pad=self.encoder.pad_id, eos=() if end is None else (end,), decoder=self.decoder
        )
        self.net = build.network(
            family, cfg, head=hf_generation.HEADS[family.KIND], outputs=2, model=section, rules=RULES, mesh=mesh
        )
        model = nnx.merge(self.net.structure, unflatten_dict(self.net.abstract, sep="/"))
        self._most, self._turn = model.most, model.turn
        if self._most and "max_new_tokens" not in wanted and flags.get("max_new_tokens") is None:
            room = min(self.settings.new, max(1, self._most // 2))
            self.settings = dataclasses.replace(self.settings, new=room)
        params, said = build.parameters(self.net, folder, seed=0, reset_head=False)
        if any(line.startswith("new") for line in said):
            raise UserError(f"{source} has no trained {self.net.head} head: {said[0]}; it cannot write texts")
        self.params = self.net.apart(params)
        self._seed, self._batch, self._rows = seed, batch, 0
        self._where = sharding.batch_sharding(mesh, RULES.activations)
        self._loop: Any = beam if self.settings.beams > 1 else write
        self._begin = jax.jit(
            lambda params, batch, key_B: self._loop.begin(self.net, params, batch, key_B, self.settings)
        )
        self._go_on: Any = None

    def _on(self, now: Any, until: int) -> Any:
        """`now` with texts of `until` tokens, or their ends."""
        if self._go_on is None:
            self._go_on = jax.jit(
                lambda params, now, until: self._loop.go_on(self.net, params, now, until, self.settings),
                donate_argnums=1,
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, now),  # or the next call would be another one
            )
        return self._go_on(self.params, now, until)

    def ids(self, prompts: Sequence[str], places: Sequence[str], *, special: bool = True) -> list[np.ndarray]:
        """The tokens of prompts, which stand at `places`. Raises UserError for one that does not fit the model."""
        found = self.encoder.whole(prompts, special=special)
        for ids, place in zip(found, places, strict=True):
            self._check(ids, place)
        return found

    def _check(self, ids: np.ndarray, place: str) -> None:
        new = self.settings.new
        if not len(ids):
            raise UserError(f"{place}: the prompt is empty; a text goes on from one token at least")
        written, end = f"{place}: a prompt of {len(ids)} tokens", len(ids) + new - 1
        length = max(end, 1) if self.decoder else max(len(ids), new)
        if self._most and length > self._most:
            raise UserError(
                f"{written} with max_new_tokens={new} exceeds the {self._most} positions of the model; shorten the "
                "prompt, or set --max_new_tokens lower"
            )
        kind = self.net.cfg.rope["rope_type"] if self._turn else ""
        if self._turn and end > self._turn and (kind != "longrope" or len(ids) <= self._turn):
            raise UserError(
                f"{written} with max_new_tokens={new} passes {self._turn} tokens, beyond which rope_type={kind} gives "
                "every token other angles than those that are kept; shorten the prompt, or set --max_new_tokens lower"
            )

    def write(self, prompts: Sequence[np.ndarray], first: int = 0) -> list[str]:
        """The text after each prompt; `first` is the number of the first one, by which tokens are drawn.

        A prompt's text does not depend on the others.
        """
        order = sorted(range(len(prompts)), key=lambda i: (self._beyond(prompts[i]), len(prompts[i])))
        texts = [""] * len(prompts)
        for chosen in self._batches(order, prompts):
            now = self._prefilled([prompts[i] for i in chosen], [first + i for i in chosen])
            now = self._on(now, self.settings.new)
            written = np.asarray(now.best_ids_BUM[:, 0] if isinstance(now, beam.Beams) else now.ids_BM)
            for row, i in enumerate(chosen):
                texts[i] = self.encoder.text(self._ended(written[row, -self.settings.new :]))
        return texts

    def stream(self, prompt: np.ndarray, number: int = 0) -> Iterator[str]:
        """The same of one prompt, in pieces as they come; a search, which may change its mind, comes in one."""
        if self.settings.beams > 1:
            yield self.write([prompt], number)[0]
            return
        now, said, new = self._prefilled([prompt], [number]), "", self.settings.new
        for count in range(1, new + 1):
            ids_M, done_B = jax.device_get((now.ids_BM[0], now.done_B))
            last = bool(done_B.all()) or count == new
            text = self.encoder.text(self._ended(ids_M[-new:][:count]))
            # A letter may take several tokens; of one that is not complete the tokenizer makes this mark.
            if text != said and (last or (text.startswith(said) and not text.endswith("\ufffd"))):
                yield text[_alike(said, text) :]
                said = text
            if last:
                return
            now = self._on(now, count + 1)

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

    def _prefilled(self, prompts: Sequence[np.ndarray], numbers: Sequence[int]) -> Any:
        shards = sharding.batch_shards(self.net.mesh, RULES.activations)
        self._rows = max(self._rows, -(-len(prompts) // shards) * shards)  # as before: the programs are there
        length = max(SHORTEST, 1 << (max(map(len, prompts)) - 1).bit_length())
        batch = {name: np.zeros((self._rows, length), np.int32) for name in ("ids", "segment", "position")}
        for row, ids in enumerate(prompts):
            # A text goes on where its row ends; a source is read as in training.
            place = slice(length - len(ids), length) if self.decoder else slice(len(ids))
            batch["ids"][row, place], batch["segment"][row, place] = ids, 1
            batch["position"][row, place] = np.arange(len(ids))
        if self._start is not None:
            one = np.ones((self._rows, 1), np.int32)
            batch |= {"target_ids": one * self._start, "target_segment": one, "target_position": one * 0}
        row_B = np.array([*numbers, *[0] * (self._rows - len(numbers))], np.uint32)
        placed = {name: jax.device_put(array, self._where) for name, array in batch.items()}
        return self._begin(self.params, placed, jax.device_put(write.keys(self._seed, row_B), self._where))

    def _ended(self, ids: np.ndarray) -> list[int]:
        """`ids` before the token that ends the text, if there is one."""
        ends = np.flatnonzero(np.isin(ids, self.settings.eos))
        return ids[: ends[0]].tolist() if len(ends) else ids.tolist()


def _alike(a: str, b: str) -> int:
    """With how many equal letters both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _mesh(tensor: int) -> jax.sharding.Mesh:
    devices = len(jax.devices())
    if tensor < 1 or devices % tensor:
        fitting = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
        raise UserError(f"--tensor={tensor} does not divide the {devices} devices; use one of: {fitting}")
    return sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": tensor, "context": 1, "expert": 1})


def _section(name: str, source: str, dtype: str) -> Model:
    return Model(
        name=name,
        hf=source,
        scratch={},
        override={},
        dtype=dtype,
        param_dtype=dtype,
        scan=False,
        remat="none",
        attention="auto",
        reset_head=False,
    )


def _wanted(folder: Path, hf: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json over what older config.json files say of the same."""
    known = settings.READ | set(settings.FIXED) | {"decoder_start_token_id"}
    return {name: value for name, value in hf.items() if name in known} | hf_generation.read(folder)
