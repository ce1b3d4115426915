"""A run before its first step: everything built, in the order in which a mistake is cheapest to find."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxft import (
    build,
    companions,
    exporting,
    inputs,
    memory,
    processes,
    rehearsal,
    runfolder,
    scoring,
    sharding,
    state,
)
from jaxft.checkpoint import Checkpoints, nbytes
from jaxft.config import Config, interval, steps
from jaxft.data.pipeline import WHOLE, Share
from jaxft.hf import files, hub
from jaxft.metrics import better
from jaxft.observe.goodput import NOTHING, Ledger
from jaxft.observe.spikes import Detours, Spikes
from jaxft.registry import UserError
from jaxft.signals import StopSignals
from jaxft.step import TrainState
from jaxft.writer import EXAMPLES_SHOWN

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cadence:
    """The run in steps. What comes back need not come back in whole steps: see config.is_due."""

    total: int
    evaluate: float
    checkpoint: float
    log: float
    warmup: int


@dataclass
class Tracker:
    """The best evaluation so far; kept in every checkpoint, so that a resumed run decides alike."""

    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best one

    def add(self, metric: str, value: float, step: int) -> bool:
        """Notes a metric; True when it is the best so far (NaN never is)."""
        if value == value and (self.best is None or better(metric, value, self.best)):
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False


class Run:
    """All that the loop needs, and the state that it advances."""

    def __init__(
        self, config: Config, folder: runfolder.RunFolder, allow: Sequence[str], say: Say, signals: StopSignals
    ):
        self.config, self.folder, self.allow, self.say, self.signals = config, folder, allow, say, signals
        self.ledger = Ledger(folder.goodput, writes=processes.first())
        self.mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
        rehearsal.check_mesh(config, self.mesh)
        say(f"devices: {self.mesh.size} x {self.mesh.devices.flat[0].device_kind}; mesh {rehearsal.shape(self.mesh)}")
        self.batch_sharding = sharding.batch_sharding(self.mesh, config.sharding.activations)
        blocks = sharding.batch_blocks(self.mesh, config.sharding.activations)
        self.share = Share(blocks, sharding.batch_shards(self.mesh, config.sharding.activations))
        weights = config.peft["name"] != "full" or not folder.started()  # checkpoints hold what trains, or all
        hf_folder = hub.resolve(config.model.hf, weights=weights) if config.model.hf else None
        rehearsed = rehearsal.rehearse(config, self.mesh, hf_folder, started=folder.started())
        self.reader, folders = rehearsed.reader, rehearsed.folders
        if hf_folder is None:
            lend = functools.partial(companions.lend_tokenizer, folders, folder.tokenizer, config.input.length)
            processes.by_first("tokenizer", lend)
        prepare = functools.partial(self.reader.prepare, config, rehearsed.net.cfg, folder.tokenizer, hf_folder, say)
        self.inputs = processes.in_turn("data", lambda: folder.sharing(processes.first(), prepare))
        task = self.task = self.inputs.task
        self.cadence = self._cadence()
        net = rehearsal.network(config, self.mesh, hf_folder, task.head, task.outputs, **self.inputs.fields)
        self.net = rehearsal.for_run(companions.attach(net, task, folders, config), self.cadence.total)
        self.inputs.check(self.net.cfg)
        companions.check_inputs(self.net, self.inputs, config.input.length)
        self.author = self.inputs.author(self.net, config)
        for text in self.net.unsharded:
            say(f"not sharded, does not divide: {text}")
        self.schedule = state.schedule(config, total=self.cadence.total, warmup=self.cadence.warmup)
        self.plan = state.plan(self.net, config, self.schedule)
        groups = ", ".join(f"{group} {size:,}" for group, size in self.net.sizes().items())
        whole, frozen = sum(self.net.sizes().values()), state.frozen_size(self.net, self.plan)
        share = f", {1 - frozen / whole:.2%} train" if self.net.peft.frozen else ""
        say(f"parameters: {whole:,} ({groups}); frozen {frozen:,}{share}")
        for text in companions.described(self.net, task):
            say(text)
        self.checkpoints = Checkpoints(
            folder.checkpoints, keep=config.checkpoint.keep, say=say, before_commit=folder.send
        )
        self.checkpoints.preflight(nbytes(state.saved(self.net, self.plan.abstract)))
        self.inputs = self.inputs.before_training(self)
        self.tracker = Tracker()
        self.spikes = Spikes(config.spikes.sigma, config.spikes.window)
        self.detours = Detours(folder.rollbacks)
        self.step = 0
        self.state: Any = None
        self.state = self._restore_or_init()
        self.given = companions.given(self.net, config.seed)
        self.train_step, self.eval_step = self._compile()

    def _cadence(self) -> Cadence:
        config = self.config
        rows = self.inputs.rows("train")
        per_epoch = rows / config.train.batch
        count, every = functools.partial(steps, per_epoch=per_epoch), functools.partial(interval, per_epoch=per_epoch)
        total = count(config.train.duration, "train.duration")
        if total < 1:
            raise UserError(f"train.duration={config.train.duration!r} is no whole step; an epoch has {per_epoch:.2f}")
        if config.profile.steps and config.profile.steps[1] > total:
            first, last = config.profile.steps
            raise UserError(f"profile.steps={first},{last}: the run has {total:,} steps; name steps within it, or ()")
        cadence = Cadence(
            total,
            max(1.0, every(config.evaluate.every, "evaluate.every", total=total)),
            max(1.0, every(config.checkpoint.every, "checkpoint.every", total=total)),
            max(1.0, every(config.train.log_every, "train.log_every", total=total)),
            count(config.schedule["warmup"], "schedule.warmup", total=total),
        )
        examples = self.inputs.examples_to_train / rows * config.train.batch
        each, pieces = len(self.inputs.lengths) / self.inputs.examples_to_train, inputs.PIECES.get(self.task.reads)
        what = f"{examples:.0f} examples" + (f" of {each:.1f} {pieces} each" if pieces else "")
        self.say(f"steps: {total:,} of {config.train.batch} rows (about {what}); {per_epoch:.1f} an epoch")
        return cadence

    def _restore_or_init(self) -> TrainState:
        step = self.checkpoints.newest(fallback=True)
        if step is None:
            self.ledger.go_back(NOTHING)
            return self.plan.make(
                companions.start(self.net, self._first_parameters(self.say), self.config.seed, self.say)
            )
        meta = self.checkpoints.meta(step)
        identity = self.identity
        changed = [key for key, value in meta["identity"].items() if identity.get(key, "absent") != value]
        if not all(runfolder.covered(key, self.allow) for key in changed):
            raise UserError(
                f"the checkpoint of step {step} was made from other inputs: {', '.join(changed)} changed; "
                f"restore them, use another --workdir, or continue with "
                f"--allow_change={','.join(dict.fromkeys([*self.allow, *changed]))}"
            )
        if changed:
            self.say(f"changed since the checkpoint of step {step:,}: {', '.join(changed)}")
        self.say(f"resuming from the checkpoint of step {step:,}")
        return self.restore(step)

    def restore(self, step: int) -> TrainState:
        """The state of a checkpoint; all else that the run carries becomes what it was then."""
        meta = self.checkpoints.meta(step)
        self.step, self.tracker = step, Tracker(**meta["tracker"])
        self.spikes.go_back(meta["spikes"])
        self.ledger.go_back(meta["spent"])
        return self.read(step)

    def read(self, step: int) -> TrainState:
        """The state that a checkpoint was made of; what it does not hold is as it was when training began."""
        held = self.checkpoints.restore(step, state.saved(self.net, self.plan.abstract))
        if not self.net.peft.frozen:
            return held
        at_hand = self.state is not None
        params = state.all_parameters(self.state) if at_hand else self._first_parameters(lambda text: None)
        return state.whole(held, params)

    def _first_parameters(self, say: Say) -> Any:
        params, said = build.parameters(self.net, self.inputs.hf_folder, self.config.seed, self.config.model.reset_head)
        for text in said:
            say(text)
        exporting.check_new(self.net, build.new_of(said), self.config.model.hf)
        return params

    def _compile(self) -> tuple[Any, Any]:
        """Both steps, compiled ahead of time for the one shape they will ever see."""
        task, net = self.task, self.net
        step = state.training_step(net, task, self.plan, self.config)
        batch = self._abstract_batch("train", self.config.train.batch)
        started = time.perf_counter()
        with self.ledger.of("compile"):
            compiled = step.lower(self.plan.abstract, batch, self.given).compile()
        self.say(memory.describe(compiled, time.perf_counter() - started))
        memory.check(compiled, self.mesh)
        return compiled, state.evaluation_step(net, task)

    def _abstract_batch(self, split: str, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        one = next(iter(self.inputs.eval_batches(split, rows, WHOLE)))
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self.batch_sharding)
            for name, array in one.items()
        }

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to compute the same."""
        frozen = self.inputs.hf_folder if self.net.peft.frozen else None
        base = {"model.hf": files.weights_digest(frozen)} if frozen else {}
        return self.inputs.identity() | companions.identity(self.net) | base

    def batches(self) -> Iterator[tuple[int, Any]]:
        """(step, this process's share of its batch) from the next step on, without end."""
        host, at = iter(()), -1
        for step in itertools.count(self.step + 1):
            wanted = self.detours.batch(step)
            if wanted != at:
                host = self._host_batches(wanted)
            yield step, next(host)
            at = wanted + 1

    def _host_batches(self, start: int) -> Iterator[Any]:
        return self.inputs.train_batches(self.config, start, self.share)

    def examples(self, step: int) -> list[str]:
        """Where the examples of a step's global batch were read."""
        batches = self.inputs.train_batches(self.config, self.detours.batch(step), WHOLE)
        return self.inputs.places(next(batches))

    def name_batch(self, step: int) -> str:
        """A step's batch in words."""
        places, line = self.examples(step), f"line {step} of {self.folder.place}/batches.log"
        shown = ", ".join(places[:EXAMPLES_SHOWN]) + (", ..." if len(places) > EXAMPLES_SHOWN else "")
        return f"The batch of step {step} ({line}) has {len(places)} examples: {shown}"

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        return self.config.optim["lr"] * float(self.schedule(step))

    def score(self, split: str, of: TrainState, *, last: bool = False) -> Any:
        """The task's meter of a split. `last`: this is the end of the run."""
        batches = self.inputs.eval_batches(split, self.config.evaluate.batch, self.share)
        params, meter = state.weights(of), self.task.meter()
        meter.tell(self.inputs.examples(split))
        scoring.score(self.eval_step, params, batches, meter, self.batch_sharding)
        if self.author is not None:
            self.author.add(meter, split, params, last=last)
        return meter
