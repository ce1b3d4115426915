"""The one loop: restore, step, evaluate, save, export."""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxft import companions, finish, processes, runfolder, scoring
from jaxft.config import Config, is_due
from jaxft.data import pipeline
from jaxft.progress import in_notebook
from jaxft.registry import UserError
from jaxft.run import Run
from jaxft.signals import Stopped, StopSignals
from jaxft.step import all_finite
from jaxft.throughput import Throughput
from jaxft.writer import Writer, check_wandb

EXAMPLES_SHOWN = 8


def train(
    raw: Mapping[str, Any], config: Config, workdir: str | Path, allow: Sequence[str], say: Callable[[str], None]
) -> None:
    """Trains as `config` says in the folder `workdir`, from its newest checkpoint where there is one.

    `raw` is the config as plain dicts. Raises UserError for what the user can mend and Stopped when a signal ended the
    run after saving.
    """
    check_wandb(config.log.wandb)
    with contextlib.ExitStack() as held, StopSignals(kernel=in_notebook()) as signals:
        folder = held.enter_context(runfolder.opened(workdir))
        watch = held.enter_context(processes.Watch(lambda: signals.number))

        def claim() -> bool:
            folder.create()
            held.enter_context(folder.lock(say))
            folder.fetch()
            folder.claim(raw, allow, say)
            if folder.finished():
                return True
            held.callback(folder.send)
            folder.send()
            return False

        if processes.by_first("run folder", claim):
            say(f"{workdir} is finished: see report.json and report.html. Nothing to do; another --workdir starts anew")
            return
        processes.in_turn("shared run folder", folder.check_shared)
        run = Run(config, folder, allow, say, signals)
        if processes.first():
            folder.record(raw)
            folder.send()
        with signals.deferred(), run.checkpoints, _writer(run) as writer:
            loop(run, writer, watch)
            run.checkpoints.wait()
        finish.finish(run, raw)
        processes.part("end")


def _writer(run: Run) -> Writer:
    log = run.config.log
    first = jax.process_index() == 0
    return Writer(
        run.folder.path,
        total=run.cadence.total,
        tensorboard=log.tensorboard,
        wandb=log.wandb,
        start=run.step,
        active=first,
    )


def loop(run: Run, writer: Writer, watch: processes.Watch) -> None:
    """Steps until the duration is over or patience is. Raises Stopped after saving when a signal has come."""
    cadence, measure = run.cadence, Throughput(run)
    feed = _feed(run, writer)
    if measure.peak:
        run.say(measure.formula())
    while run.step < cadence.total and not _out_of_patience(run):
        run.state, sums = run.train_step(run.state, next(feed), run.given)
        run.step += 1
        step, last = run.step, run.step == cadence.total
        measure.add(step, sums)
        _attend_to_skipped(run, measure, writer)
        run.checkpoints.check()
        if is_due(step, cadence.log) or last:
            writer.log(step, measure.flush(run.learning_rate(step - 1)))
        best = False
        if is_due(step, cadence.evaluate) or last:
            with measure.paused():
                best = _evaluate(run, writer)
        asked = watch.asked(step)  # read once: it may come at any instant
        # Not in the middle of a streak: what blew up must not push out what was good.
        due = is_due(step, cadence.checkpoint) and not int(run.state.bad_streak)
        if due or last or best or asked or _out_of_patience(run):
            with measure.paused():
                _save(run, best)
        if asked:
            run.checkpoints.wait()
            where = f"{run.folder.checkpoints}/{step}"
            processes.part("stop")
            raise Stopped(
                f"{signal.Signals(asked).name}: stopped after step {step:,}, saved in {where}; the same command goes "
                "on",
                128 + asked,
            )
    if _out_of_patience(run):
        run.say(f"stopped early: no better {run.task.metric} in {run.tracker.waited} evaluations")


def _feed(run: Run, writer: Writer) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, one ahead of the step that uses them; each is noted in the batch log."""
    host = run.inputs.train_batches(run.config, run.step, jax.process_index(), jax.process_count())
    ahead = None
    for step, batch in enumerate(host, run.step + 1):
        here = (step, pipeline.digest(batch), scoring.to_device(batch, run.batch_sharding))
        if ahead is not None:
            writer.batch(ahead[0], ahead[1])
            yield ahead[2]
        ahead = here


def _attend_to_skipped(run: Run, measure: Throughput, writer: Writer) -> None:
    """Names a step whose update was left out and its examples. Raises UserError when there were too many in a row."""
    most = run.config.train.max_bad_steps
    for step, streak in measure.streaks():
        if not streak:
            continue
        examples = _examples(run, step)
        writer.skipped(step, examples[:EXAMPLES_SHOWN])
        run.say(
            f"step {step:,}: loss or gradients were not finite, the update is left out. Its batch (line {step} of "
            f"{run.folder.place}/batches.log) has {len(examples)} examples: {_shown(examples)}"
        )
        if streak >= most:
            _give_up(run, measure, writer, step, streak)


def _examples(run: Run, step: int) -> list[str]:
    """Where the examples of a step's batch were read."""
    return run.inputs.places(
        next(run.inputs.train_batches(run.config, step - 1, jax.process_index(), jax.process_count()))
    )


def _shown(examples: Sequence[str]) -> str:
    return ", ".join(examples[:EXAMPLES_SHOWN]) + (", ..." if len(examples) > EXAMPLES_SHOWN else "")


def _give_up(run: Run, measure: Throughput, writer: Writer, step: int, streak: int) -> None:
    """Raises UserError: names the non-finite steps, the examples of the first one and what is left."""
    writer.log(run.step, measure.flush(run.learning_rate(run.step - 1)))
    run.checkpoints.wait()
    kept = ", ".join(map(str, run.checkpoints.steps()))
    first = step - streak + 1
    examples = _examples(run, first)
    raise UserError(
        f"loss or gradients were not finite in {streak} steps in a row (train.max_bad_steps), {first} to {step}; "
        f"their updates were left out. The batch of step {first} (line {first} of {run.folder.place}/batches.log) "
        f"has {len(examples)} examples: {_shown(examples)}. Checkpoints that stand: {kept or 'none yet'}. "
        "Lower optim.lr, set train.clip, or mend those examples",
        code=1,
    )


def _out_of_patience(run: Run) -> bool:
    patience = run.config.evaluate.patience
    return patience > 0 and run.tracker.waited >= patience


def _evaluate(run: Run, writer: Writer) -> bool:
    """Scores the validation split; True when it is the best score so far."""
    metrics = run.score("validation", run.state).result()
    # Weights that have blown up still guess some labels right: no score of theirs is the best.
    score = metrics[run.task.metric] if math.isfinite(metrics["loss"]) else math.nan
    best = run.tracker.add(run.task.metric, score, run.step)
    writer.log(run.step, {f"validation/{name}": value for name, value in metrics.items()})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    run.say(f"step {run.step:,}: validation {shown}" + (" (best)" if best else ""))
    return best


def _save(run: Run, best: bool) -> None:
    if not all_finite(run.state):
        names = {
            "params": "parameters",
            "opt": "optimizer state",
            "ema": "moving average",
            "frozen": "frozen parameters",
        }
        bad = [text for name, text in names.items() if (tree := getattr(run.state, name)) and not all_finite(tree)]
        raise UserError(
            f"not finite after step {run.step:,}: {', '.join(bad)}. This is not saved. Checkpoints that stand: "
            f"{', '.join(map(str, run.checkpoints.steps())) or 'none'}. Lower optim.lr or set train.clip",
            code=1,
        )
    model = {
        "family": run.net.family.MODEL_TYPE,
        "config": dataclasses.asdict(run.net.cfg),
        "head": run.net.head,
        "outputs": run.task.outputs,
        "task": run.task.hf_config(),
        "companions": companions.record(run.net),
    }
    meta = {
        "identity": run.identity,
        "tracker": dataclasses.asdict(run.tracker),
        "model": model,
    }
    run.checkpoints.save(run.step, run.state, meta, best=best)
