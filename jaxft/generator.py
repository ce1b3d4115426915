"""A hub folder, ready to write texts: what generate runs."""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft import adapters, build, sharding
from jaxft.config import Sharding
from jaxft.generation import settings
from jaxft.hf import generation as hf_generation
from jaxft.hf import tokenizer
from jaxft.registry import UserError
from jaxft.texts import Texts, wanted

# Rows over `data`; over `tensor` what each device computes of every row.
RULES = Sharding(
    dict(V="tensor", F="tensor", HK="tensor", GK="tensor"),
    dict(B="data", V="tensor", F="tensor", H="tensor", G="tensor"),
)


class Generator:
    """Network, parameters, tokenizer and settings of a hub folder, on all devices."""

    def __init__(self, source: str, flags: Mapping[str, Any], *, dtype: str, batch: int, tensor: int, seed: int):
        """`flags` stand over generation_config.json (settings.read); `batch` is the most rows that are written at once,
        `tensor` the number of devices that share one row. `said` is what there is to say."""
        at = adapters.opened(source)
        folder, hf = at.beside, at.hf
        self.folder = folder  # of the tokenizer, and the chat template
        mesh = _mesh(tensor)
        if dtype == "auto":
            dtype = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
        section = adapters.section(hf["model_type"], source, dtype=dtype, param_dtype=dtype)
        family = build.family_of(section, hf)
        if hf_generation.HEADS.get(family.KIND) not in family.HF_HEADS:
            raise UserError(f"{source} is a {family.MODEL_TYPE} model, which does not write texts; see jaxft.predict")
        self.encoder = tokenizer.load(folder)
        _, cfg = build.family_config(section, hf, pad_id=self.encoder.pad_id)
        tokenizer.check_vocab(self.encoder, cfg.vocab)
        asked, decoder = wanted(at.base), family.KIND == "decoder"
        start = None if decoder else asked.get("decoder_start_token_id", cfg.start_id)
        end = self.encoder.named.get("eos_token")
        chosen, self.said = settings.read(
            asked, flags, pad=self.encoder.pad_id, eos=() if end is None else (end,), decoder=decoder
        )
        head = hf_generation.HEADS[family.KIND]
        options = dict(head=head, outputs=2, model=section, rules=RULES, mesh=mesh)
        make = functools.partial(build.network, family, cfg, **options)
        self.net, params, _, new = adapters.loaded(make, at)
        if new:
            raise UserError(f"{source} has no trained {head} head: it lacks {', '.join(new)}; it cannot write texts")
        self.texts = Texts(self.net, chosen, batch=batch, start=start, seed=seed)
        self._said_long = False
        if self.texts.most and "max_new_tokens" not in asked and flags.get("max_new_tokens") is None:
            room = min(chosen.new, max(1, self.texts.most // 2))
            self.texts = Texts(self.net, dataclasses.replace(chosen, new=room), batch=batch, start=start, seed=seed)
        self.params = self.net.apart(params)

    def ids(self, prompts: Sequence[str], places: Sequence[str], *, special: bool = True) -> list[np.ndarray]:
        """The tokens of prompts, which stand at `places`. Raises UserError for one that does not fit the model."""
        found = self.encoder.whole(prompts, special=special)
        for ids, place in zip(found, places, strict=True):
            self.texts.check(len(ids), place)
            self._told(len(ids), place)
        return found

    def _told(self, length: int, place: str) -> None:
        """Says once that a text may grow longer than any the model was trained on, where it has room for more."""
        trained = 0 if self.texts.most or self.texts.start is not None else self.net.cfg.positions
        if trained and length + self.texts.settings.new > trained and not self._said_long:
            self._said_long = True
            print(
                f"jaxft: {place}: {length} tokens and max_new_tokens={self.texts.settings.new} may pass the "
                f"{trained} tokens that the model was made for (max_position_embeddings); what follows may be nonsense",
                file=sys.stderr,
                flush=True,
            )

    def write(self, prompts: Sequence[np.ndarray], first: int = 0) -> list[str]:
        """As Texts.write, in letters."""
        return [self.encoder.text(ids) for ids in self.texts.write(self.params, prompts, first)]

    def stream(self, prompt: np.ndarray, number: int = 0) -> Iterator[str]:
        """The same of one prompt, in pieces as they come; a search, which may change its mind, comes in one."""
        if self.texts.settings.beams > 1:
            yield self.write([prompt], number)[0]
            return
        now, said, new = self.texts.begin(self.params, [prompt], [number]), "", self.texts.settings.new
        for count in range(1, new + 1):
            ids_M, done_B = jax.device_get((now.ids_BM[0], now.done_B))
            last = bool(done_B.all()) or count == new
            text = self.encoder.text(self.texts.ended(ids_M[-new:][:count]))
            # A letter may take several tokens; of one that is not complete the tokenizer makes this mark.
            if text != said and (last or (text.startswith(said) and not text.endswith("\ufffd"))):
                yield text[_alike(said, text) :]
                said = text
            if last:
                return
            now = self.texts.go_on(self.params, now, count + 1)


def _alike(a: str, b: str) -> int:
    """With how many equal letters both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _mesh(tensor: int) -> jax.sharding.Mesh:
    devices = len(jax.devices())
    if tensor < 1 or devices % tensor:
        fitting = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
        raise UserError(f"--tensor={tensor} does not divide the {devices} devices; use one of: {fitting}")
    return sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": tensor, "context": 1, "expert": 1})
