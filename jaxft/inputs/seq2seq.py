"""Pairs of a source and a target, each tokenised, in rows of their own (data/pairs.py); and texts written anew."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache, disk
from jaxft.config import Config
from jaxft.data import blanks, pairs, tokens
from jaxft.data.pairs import Pairs
from jaxft.data.pipeline import Batch, Share
from jaxft.data.source import fingerprint, quoted
from jaxft.data.token_writer import REPORTED
from jaxft.generation import settings
from jaxft.hf import generation as hf_generation
from jaxft.hf import save, tokenizer
from jaxft.inputs import text
from jaxft.inputs.base import Say, kept, listed, read
from jaxft.registry import Dropped, UserError
from jaxft.tasks import Example
from jaxft.tasks.seq2seq import ALL
from jaxft.texts import SHORTEST, Texts, wanted


@dataclass(frozen=True)
class PairInputs(text.Tokenized):
    """`encoder` reads sources, `target_encoder` targets; `caches` are of the sources. `pairs`: split -> its rows."""

    target_encoder: Any
    pairs: dict[str, Pairs]

    @property
    def fields(self) -> dict[str, Any]:
        """A decoder without a checkpoint begins with the padding token, as those of T5 and Marian do."""
        pad = self.encoder.pad_id
        return {**super().fields, "eos_id": self.encoder.named["eos_token"], "start_id": pad}

    def identity(self) -> dict[str, str]:
        targets = {f"data.{name}.target": held.targets.fingerprint for name, held in self.pairs.items()}
        return super().identity() | targets | {"tokenizer.target": self.target_encoder.fingerprint}

    def check(self, cfg: Any) -> None:
        """Raises UserError for a token without an embedding, and for rows or texts longer than the model."""
        for encoder in (self.encoder, self.target_encoder):
            tokenizer.check_vocab(encoder, cfg.vocab)
        for name, held in self.pairs.items():
            for side in (held.sources, held.targets):
                side.check_ids(cfg.vocab, 0, self.splits[name].where)

    @property
    def lengths(self) -> np.ndarray:
        """Of each pair the mean of source and target: what FLOPs are counted for is a token of each."""
        held = self.pairs["train"]
        used = held.plan.examples
        return np.maximum((held.sources.lengths[used] + held.targets.lengths[used]) // 2, 1)

    def rows(self, split: str) -> int:
        return self.pairs[split].plan.rows

    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        return self.pairs["train"].batches(batch=config.train.batch, seed=config.seed, start=start, share=share)

    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        return self.pairs[split].eval_batches(batch=batch, share=share)

    def author(self, net: Any, config: Config) -> "Author | None":
        """What writes texts in evaluations; None where none are asked for."""
        return Author(self, net, config.evaluate.batch) if self.task.write or self.task.write_last else None


class Author:
    """Writes texts for some rows of a split, always the same, with the weights of the moment."""

    def __init__(self, inputs: PairInputs, net: Any, batch: int):
        self._inputs, self._net, self.texts = inputs, net, texts_of(inputs, net, batch)

    def add(self, meter: Any, split: str, params: Any, *, last: bool) -> None:
        """Gives `meter` the texts of a split, if any are wanted. `last`: this is the end of the run."""
        inputs, task = self._inputs, self._inputs.task
        held, most = inputs.pairs[split], task.write_last if last else task.write
        chosen = np.sort(held.plan.examples)
        if most != ALL and most < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(int)]  # from all of the split
        if not len(chosen):
            return
        examples = [task.example(inputs.splits[split].rows[int(held.sources.row[i])]) for i in chosen]
        apart = self._net.apart(params, keep=True)
        add_texts(meter, held, chosen.tolist(), examples, self.texts, apart, inputs.target_encoder)


def add_texts(
    meter: Any, held: Pairs, chosen: Sequence[int], examples: Sequence[Any], texts: Texts, params: Any, encoder: Any
) -> None:
    """Gives `meter` what is written for the pairs `chosen` of `held`, which are `examples`."""
    sources = [held.sources.ids[slice(*held.sources.offsets[i : i + 2])].astype(np.int32) for i in chosen]
    written = [encoder.text(ids) for ids in texts.write(params, sources)]
    meter.add_texts([one.text for one in examples], [one.pair for one in examples], written)


def texts_of(inputs: PairInputs, net: Any, batch: int) -> Texts:
    """The programs, with what the checkpoint says of its texts under what the task says. Raises UserError."""
    task = inputs.task
    hub = {} if inputs.hf_folder is None else wanted(inputs.hf_folder)
    flags = {"num_beams": task.beams, "max_new_tokens": task.max_new_tokens}
    longest = max(int(held.sources.lengths[held.plan.examples].max(initial=1)) for held in inputs.pairs.values())
    made = programs(net, hub, flags, batch=batch, length=longest)
    if made.most and (new := made.settings.new) > made.most:
        raise UserError(f"task.max_new_tokens={new} exceeds the {made.most} positions of the model; set it lower")
    return made


def programs(
    net: Any, hub: Mapping[str, Any], flags: Mapping[str, Any], *, batch: int, length: int = SHORTEST
) -> Texts:
    """What writes the likeliest texts: as `flags` say, else what the checkpoint does (`hub`, texts.wanted)."""
    cfg = net.cfg
    chosen, _ = settings.read(hub, {**flags, "temperature": 0}, pad=cfg.pad_id, eos=(cfg.eos_id,), decoder=False)
    start = hub.get("decoder_start_token_id", cfg.start_id)
    return Texts(net, chosen, batch=batch, start=start, seed=0, length=length)


def placeholders(config: Config) -> dict[str, Any]:
    return text.placeholders(config) | {"eos_id": 1, "start_id": 0}


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> PairInputs:
    """As text.prepare, of sources and targets."""
    length = text.checked_length(config, cfg)
    task, dataset = read(config, hf_folder, say)
    if cfg.positions < task.target_length:
        raise UserError(
            f"task.target_length={task.target_length} exceeds the model's {cfg.positions} positions; set it lower"
        )
    encoder = text.encoder_of(config, task, dataset.splits["train"], folder, hf_folder, say)
    target_encoder = tokenizer.load(folder if hf_folder is None else hf_folder, target=True)
    _check_end(target_encoder)
    start = encoder.pad_id if hf_folder is None else cfg.start_id
    made = {}
    for name, split in dataset.splits.items():
        sources = _cache(task, encoder, split, "source", length, config.input.on_bad)
        targets = _cache(task, target_encoder, split, "target", task.target_length, config.input.on_bad)
        plan = _plan(sources, targets, length, task.target_length, max_segments=config.input.pack, seed=config.seed)
        held = made[name] = Pairs(sources, targets, plan, length, task.target_length, start)
        if not plan.rows:
            raise UserError(
                f"{name}: all {len(sources.row):,} pairs are longer than input.length={length} or "
                f"task.target_length={task.target_length}; set these higher, or task.too_long='cut'"
            )
        dropped = held.dropped
        counts = sources.counts | {"kept": sources.counts["kept"] - len(dropped)}
        say(f"{name}: {kept(counts)}{_cut(held, task)}; {_packed(held)}")
        for side in (sources,) if targets.bad == sources.bad else (sources, targets):
            for line in listed(name, side):
                say(line)
        if dropped:
            say(f"{name}: {_listed(held, [(split.where(int(sources.row[x])), why) for x, why in dropped])}")
    caches = {name: held.sources for name, held in made.items()}
    return PairInputs(task, hf_folder, dataset.splits, caches, encoder, length, target_encoder, made)


def blank(config: Config, cfg: Any, task: Any) -> Batch:
    """A batch of one row that a single pair fills."""
    length, target_length = text.checked_length(config, cfg), task.target_length
    sources, targets = blanks.cache([length]), blanks.cache([target_length])
    plan = _plan(sources, targets, length, target_length, max_segments=config.input.pack, seed=0)
    return Pairs(sources, targets, plan, length, target_length, 0).assemble(np.zeros(1, np.int64))


def _check_end(encoder: Any) -> None:
    """Raises UserError where nothing would tell the decoder to stop."""
    ids, end = encoder.whole([""])[0], encoder.named.get("eos_token")
    if end is None or not len(ids) or ids[-1] != end:
        raise UserError(
            "the tokenizer puts no end-of-text token behind a text, so that no target would end; use that of an "
            "encoder-decoder, or tokenizer.name='seq2seq' for random weights"
        )


def _cut(held: Pairs, task: Any) -> str:
    """How many texts were cut, in words."""
    if task.too_long != "cut":
        return ""
    sides = {"sources": (held.sources, held.length), "targets": (held.targets, held.target_length)}
    cut = {name: (cache.counts["truncated"], length) for name, (cache, length) in sides.items()}
    return "".join(f", {n:,} {name} cut to {length} tokens" for name, (n, length) in cut.items() if n)


def _listed(held: Pairs, dropped: Sequence[tuple[str, str]]) -> str:
    """What to say of the (place, reason) of pairs that are left out; up to a thousand are written to a file.

    Each side has a token cache that is whole without the other, so that neither's list can have them.
    """
    told = {"sources": held.sources.fingerprint, "targets": held.targets.fingerprint, "first": dropped[0][0]}
    file = cache.private_dir("dropped") / f"{fingerprint(**told)}.json"
    with disk.writing(file):
        file.write_text(json.dumps(dropped[:REPORTED], indent=1, ensure_ascii=False), encoding="utf-8")
    return f"{len(dropped):,} of {held.sources.counts['rows']:,} rows left out (listed in {file}):\n{quoted(dropped)}"


def _packed(held: Pairs) -> str:
    fill, target_fill = held.fill
    return f"packed into {held.plan.rows:,} rows, {1 - fill:.1%} padding of sources, {1 - target_fill:.1%} of targets"


def _cache(task: Any, encoder: Any, split: Any, side: str, length: int, on_bad: str) -> Any:
    """The token cache of one side of one split."""
    return tokens.build(
        split,
        lambda row: _side(task.example(row), side),  # a row is bad on both sides where it is on one
        lambda texts: encoder.encode(texts, _most(task, length)),
        key={
            "tokenizer": encoder.fingerprint,
            "columns": repr((task.source, task.target, task.prefix)),
            "side": side,
            "length": str(_most(task, length)),
        },
        folder=str(cache.private_dir("tokens")),
        on_bad=on_bad,
    )


def _side(both: Example, side: str) -> Example:
    chosen = both.text if side == "source" else both.pair
    assert chosen is not None, "pairs are read with their targets"
    return Example(chosen, None, None)


def _most(task: Any, length: int) -> int:
    """Tokens of a text: what is dropped if it is too long has one more than fits."""
    return length + (task.too_long == "drop")


class Reader:
    """The tokenizers of a hub folder. `length`: the most tokens of a source to read (0: as trained)."""

    most = 4096

    def __init__(self, folder: Path, length: int, task: Any):
        self._folder, self._wanted = folder, length
        self._encoder, self.target_encoder = tokenizer.load(folder), tokenizer.load(folder, target=True)
        self.fields = {"pad_id": self._encoder.pad_id}

    def fit(self, cfg: Any) -> None:
        for encoder in (self._encoder, self.target_encoder):
            tokenizer.check_vocab(encoder, cfg.vocab)
        self._cfg = cfg
        self._length = min(self._wanted or tokenizer.max_length(self._folder, cfg.positions), cfg.positions)

    def example(self, example: Any) -> Any:
        return example

    def check(self, example: Any, task: Any) -> None:
        """Raises Dropped for a pair that `task` leaves out."""
        for _, why in self.pairs([example], [""], task).dropped:
            raise Dropped(why)

    def pairs(self, examples: Sequence[Any], places: Sequence[str], task: Any) -> Pairs:
        """Rows of `examples`, as prepare makes them."""
        length, target_length = self._length, min(task.target_length, self._cfg.positions)

        def held(side: str, encoder: Any, length: int) -> Any:
            encode = functools.partial(encoder.encode, max_length=_most(task, length))
            cache = tokens.in_memory([_side(example, side) for example in examples], encode)
            cache.check_ids(self._cfg.vocab, 0, places.__getitem__)
            return cache

        sources = held("source", self._encoder, length)
        targets = held("target", self.target_encoder, target_length)
        plan = _plan(sources, targets, length, target_length, max_segments=max(1, length // 8), seed=0)
        return Pairs(sources, targets, plan, length, target_length, self._cfg.start_id)


def _plan(sources: Any, targets: Any, length: int, target_length: int, *, max_segments: int, seed: int) -> Any:
    return pairs.plan(
        sources.lengths,
        targets.lengths,
        length=length,
        target_length=target_length,
        max_segments=max_segments,
        seed=seed,
    )


def beside(config: Config, cfg: Any, folder: Path, hf_folder: Path | None) -> Callable[[Path], object]:
    """Writes the tokenizer of a run into an export, and how its texts were written when they were scored."""

    def write(target: Path) -> None:
        tokenizer.copy_files(hf_folder or folder, target, config.input.length)
        said = {"num_beams": config.task["beams"], "max_new_tokens": config.task["max_new_tokens"], "do_sample": False}
        save.save_json(target, hf_generation.FILE, said)

    return write
