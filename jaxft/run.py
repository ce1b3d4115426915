"""A run before its first step: everything built, in the order in which a mistake is cheapest to find."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxft import build, companions, inputs, memory, processes, runfolder, scoring, sharding, state
from jaxft.checkpoint import Checkpoints, nbytes
from jaxft.config import Config, interval, steps
from jaxft.data import DATASETS
from jaxft.hf import hub
from jaxft.hf import load as hf_load
from jaxft.metrics import better
from jaxft.registry import UserError, bind, call
from jaxft.signals import StopSignals
from jaxft.step import TrainState
from jaxft.tasks import TASKS

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
        self.mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
        self._check_mesh()
        self.batch_sharding = sharding.batch_sharding(self.mesh, config.sharding.activations)
        hf_folder = hub.resolve(config.model.hf, weights=not folder.started()) if config.model.hf else None
        self.reader, cfg, folders = self._rehearse(hf_folder)
        if hf_folder is None:
            lend = functools.partial(companions.lend_tokenizer, folders, folder.tokenizer, config.input.length)
            processes.by_first("tokenizer", lend)
        prepare = functools.partial(self.reader.prepare, config, cfg, folder.tokenizer, hf_folder, say)
        self.inputs = processes.in_turn("data", lambda: folder.sharing(processes.first(), prepare))
        self.task = self.inputs.task
        self.cadence = self._cadence()
        net = self._network(self.task.head, self.task.outputs, hf_folder, **self.inputs.fields)
        self.net = companions.attach(net, self.task, folders, config)
        self.inputs.check(self.net.cfg)
        companions.check_inputs(self.net, self.inputs, config.input.length)
        self.author = self.inputs.author(self.net, config)
        for text in self.net.unsharded:
            say(f"not sharded, does not divide: {text}")
        self.schedule = state.schedule(config, total=self.cadence.total, warmup=self.cadence.warmup)
        self.plan = state.plan(self.net, config, self.schedule)
        groups = ", ".join(f"{group} {size:,}" for group, size in self.net.sizes().items())
        frozen = sum(leaf.size for leaf in jax.tree.leaves(self.plan.abstract.frozen))
        say(f"parameters: {sum(self.net.sizes().values()):,} ({groups}); frozen {frozen:,}")
        for text in companions.described(self.net, self.task):
            say(text)
        self.checkpoints = Checkpoints(
            folder.checkpoints, keep=config.checkpoint.keep, say=say, before_commit=folder.send
        )
        self.checkpoints.preflight(nbytes(self.plan.abstract))
        self.inputs = self.inputs.before_training(self)
        self.tracker = Tracker()
        self.state, self.step = self._restore_or_init()
        self.given = companions.given(self.net, config.seed)
        self.train_step, self.eval_step = self._compile()

    def _check_mesh(self) -> None:
        config, mesh = self.config, self.mesh
        sharding.check_rules(config.sharding.params, config.sharding.activations)
        shards = sharding.batch_shards(mesh, config.sharding.activations)
        for field, rows in (
            ("train.batch", config.train.batch // config.train.accumulate),
            ("evaluate.batch", config.evaluate.batch),
        ):
            if rows % shards:
                micro = " / train.accumulate" if field == "train.batch" and config.train.accumulate > 1 else ""
                raise UserError(
                    f"{field}{micro}={rows} rows are not divisible by the {shards} devices that share the batch "
                    f"(mesh {_shape(mesh)}); use {-(-rows // shards) * shards}, "
                    "or set mesh.tensor higher"
                )
        ruled = sharding.axes_of(config.sharding.params, config.sharding.activations)
        for axis, size in mesh.shape.items():
            if size > 1 and axis not in ruled:
                raise UserError(
                    f"mesh.{axis}={size}, but no rule of sharding.params or sharding.activations uses this axis: "
                    "its devices would all do the same; set it to 1"
                )
        self.say(f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}; mesh " + _shape(mesh))

    def _rehearse(self, hf_folder: Path | None) -> tuple[Any, Any, companions.Folders]:
        """Builds task, network and optimizer without data: a wrong option is refused in seconds, not after minutes.

        What only the data tell (classes, vocabulary, steps in an epoch) has a stand-in that refuses nothing. Returns
        the module that reads the inputs, the network's Config as far as it is known, and the companions' folders.
        """
        config = self.config
        bind(DATASETS, config.data, "data")
        task = call(TASKS, config.task, "task")
        reader = inputs.of(task, build.family_of(config.model, _config_of(hf_folder)))
        net = self._network(task.head, 2, hf_folder, **reader.placeholders(config))
        folders = companions.resolve(task, started=self.folder.started())
        net = companions.attach(net, task, folders, config)
        total = steps(config.train.duration, "train.duration", per_epoch=1e6)
        count = functools.partial(steps, config.schedule["warmup"], "schedule.warmup")
        # A warm-up in epochs is as short as it can be without being none, which some schedules refuse.
        warmup = count(per_epoch=0.0, total=total) or min(total - 1, 1, count(per_epoch=1e9, total=10**9))
        state.plan(net, config, state.schedule(config, total=total, warmup=warmup))
        return reader, net.cfg, folders

    def _cadence(self) -> Cadence:
        config = self.config
        rows = self.inputs.rows("train")
        per_epoch = rows / config.train.batch
        count, every = functools.partial(steps, per_epoch=per_epoch), functools.partial(interval, per_epoch=per_epoch)
        total = count(config.train.duration, "train.duration")
        if total < 1:
            raise UserError(f"train.duration={config.train.duration!r} is no whole step; an epoch has {per_epoch:.2f}")
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

    def _network(self, head: str, outputs: int, hf_folder: Path | None, **given: Any) -> build.Network:
        """The network of the config; `given` are fields that the data tell."""
        config = self.config
        family, cfg = build.family_config(config.model, _config_of(hf_folder), **given)
        return build.network(
            family,
            cfg,
            head=head,
            outputs=outputs,
            model=config.model,
            rules=config.sharding,
            mesh=self.mesh,
        )

    def _restore_or_init(self) -> tuple[TrainState, int]:
        step = self.checkpoints.newest(fallback=True)
        if step is None:
            params, said = build.parameters(
                self.net, self.inputs.hf_folder, self.config.seed, self.config.model.reset_head
            )
            for text in said:
                self.say(text)
            return self.plan.make(companions.start(self.net, params, self.config.seed, self.say)), 0
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
        self.tracker = Tracker(**meta["tracker"])
        self.say(f"resuming from the checkpoint of step {step:,}")
        return self.checkpoints.restore(step, self.plan.abstract), step

    def _compile(self) -> tuple[Any, Any]:
        """Both steps, compiled ahead of time for the one shape they will ever see."""
        task, net = self.task, self.net
        step = state.training_step(net, task, self.plan, self.config)
        started = time.perf_counter()
        batch = self._abstract_batch("train", self.config.train.batch)
        compiled = step.lower(self.plan.abstract, batch, self.given).compile()
        self.say(memory.describe(compiled, time.perf_counter() - started))
        memory.check(compiled, self.mesh)
        return compiled, state.evaluation_step(net, task)

    def _abstract_batch(self, split: str, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        one = next(iter(self.inputs.eval_batches(split, rows, 0, 1)))
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self.batch_sharding)
            for name, array in one.items()
        }

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to compute the same."""
        return self.inputs.identity() | companions.identity(self.net)

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        return self.config.optim["lr"] * float(self.schedule(step))

    def score(self, split: str, of: TrainState, *, last: bool = False) -> Any:
        """The task's meter of a split. `last`: this is the end of the run."""
        batches = self.inputs.eval_batches(split, self.config.evaluate.batch, jax.process_index(), jax.process_count())
        params, meter = state.weights(of), self.task.meter()
        meter.tell(self.inputs.examples(split))
        scoring.score(self.eval_step, params, batches, meter, self.batch_sharding)
        if self.author is not None:
            self.author.add(meter, split, params, last=last)
        return meter


def _config_of(hf_folder: Path | None) -> dict[str, Any] | None:
    return hf_load.read_config(hf_folder) if hf_folder else None


def _shape(mesh: jax.sharding.Mesh) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "of one device"
