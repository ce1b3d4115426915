"""The one loop: restore, step, evaluate, save, export."""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxft import companions, finish, processes, runfolder, scoring, state
from jaxft.batchlog import BatchLog
from jaxft.config import Config, is_due
from jaxft.data import pipeline
from jaxft.observe import Observer, rollback
from jaxft.observe.rollback import Rollback
from jaxft.progress import in_notebook
from jaxft.registry import UserError
from jaxft.run import Run
from jaxft.signals import Stopped, StopSignals
from jaxft.step import all_finite
from jaxft.throughput import Ended, Throughput
from jaxft.writer import Writer, check_wandb


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
        with signals.deferred(), run.checkpoints:
            steps(run, watch)
        finish.finish(run, raw)
        processes.part("end")


def steps(run: Run, watch: processes.Watch) -> None:
    """All steps that are left, saved; the loop begins anew after each rollback."""
    with Observer(run) as observer:
        back = None
        while back := _until_rollback(run, watch, observer, back):
            with observer.during("lost"):
                rollback.go_back(run, back)
            _stop_if_asked(run)
        with observer.during("checkpoint"):
            run.checkpoints.wait()
        _stop_if_asked(run)


def _stop_if_asked(run: Run) -> None:
    """Raises Stopped in all processes where a signal has come to one, whose steps are all saved."""
    if number := next(filter(None, processes.of_all("stop or go on", run.signals.number)), None):
        raise Stopped(_stopped(run, number), 128 + number)


def _until_rollback(run: Run, watch: processes.Watch, observer: Observer, last: Rollback | None) -> Rollback | None:
    """The loop with its logs, which forget what came after the step from which it goes on, but not why it does."""
    log, first = run.config.log, processes.first()
    sinks = {"tensorboard": log.tensorboard, "wandb": log.wandb}
    with Writer(run.folder.path, total=run.cadence.total, **sinks, start=run.step, active=first) as writer:
        if last:
            writer.spiked(run.step, last.spike.loss, last.examples, spike_step=last.spike.step)
        return loop(run, writer, watch, observer)


def loop(run: Run, writer: Writer, watch: processes.Watch, observer: Observer) -> Rollback | None:
    """Steps until the duration is over, or patience is; or until the run has to go back, which is returned.

    Raises Stopped after saving when a signal has come.
    """
    cadence, measure = run.cadence, Throughput(run)
    noted = BatchLog(run.share, writer)
    feed = _feed(run, noted)
    if measure.peak:
        run.say(measure.formula())
    while run.step < cadence.total and not _out_of_patience(run):
        step = run.step + 1
        with observer.step(step):
            run.state, sums = run.train_step(run.state, observer.batch(feed), run.given)
        run.step, last = step, step == cadence.total
        measure.add(step, sums)
        observer.add(step, sums)
        asked = watch.asked(step)  # read once: it may come at any instant
        evaluates, saves = is_due(step, cadence.evaluate) or last, is_due(step, cadence.checkpoint)
        # Of the newest step only where it is waited for anyway; so none is saved whose loss nobody has seen.
        for ended in measure.ended(newest=evaluates or saves or asked is not None):
            _attend_to_skipped(run, measure, writer, noted, ended)
            if wanted := rollback.attend(run, writer, ended.step, ended.loss):
                return wanted
        run.checkpoints.check()
        if is_due(step, cadence.log) or last:
            noted.write()
            with observer.logging():
                writer.log(step, measure.flush(run.learning_rate(step - 1)) | observer.metrics())
        best = False
        if evaluates:
            with observer.during("evaluation"):
                best = _evaluate(run, writer)
        # Not in the middle of a streak: what blew up must not push out what was good.
        due = is_due(step, cadence.checkpoint) and not int(run.state.bad_streak)
        if due or last or best or asked or _out_of_patience(run):
            with observer.during("checkpoint"):
                noted.write()  # the log never lags behind a checkpoint
                _save(run, best)
        if asked:
            with observer.during("checkpoint"):
                run.checkpoints.wait()
            processes.part("stop")
            raise Stopped(_stopped(run, asked), 128 + asked)
    if _out_of_patience(run):
        run.say(f"stopped early: no better {run.task.metric} in {run.tracker.waited} evaluations")


def _stopped(run: Run, number: int) -> str:
    where = f"{run.folder.checkpoints}/{run.step}"
    return f"{signal.Signals(number).name}: stopped after step {run.step:,}, saved in {where}; the same command goes on"


def _feed(run: Run, noted: BatchLog) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, one ahead of the step that uses them; each is noted for the batch log."""
    ahead = None
    for step, batch in run.batches():
        here = (step, pipeline.digests(batch, run.share), scoring.to_device(batch, run.batch_sharding))
        if ahead is not None:
            noted.add(ahead[0], ahead[1])
            yield ahead[2]
        ahead = here


def _attend_to_skipped(run: Run, measure: Throughput, writer: Writer, noted: BatchLog, ended: Ended) -> None:
    """Names a step whose update was left out and its examples. Raises UserError when there were too many in a row."""
    step, most = ended.step, run.config.train.max_bad_steps
    if not ended.bad_streak:
        return
    noted.write()
    writer.skipped(step, run.examples(step))
    run.say(f"step {step:,}: loss or gradients were not finite, the update is left out. {run.name_batch(step)}")
    if ended.bad_streak >= most:
        _give_up(run, measure, writer, step, ended.bad_streak)


def _give_up(run: Run, measure: Throughput, writer: Writer, step: int, streak: int) -> None:
    """Raises UserError: names the non-finite steps, the examples of the first one and what is left."""
    writer.log(run.step, measure.flush(run.learning_rate(run.step - 1)))
    run.checkpoints.wait()
    kept = ", ".join(map(str, run.checkpoints.steps()))
    first = step - streak + 1
    raise UserError(
        f"loss or gradients were not finite in {streak} steps in a row (train.max_bad_steps), {first} to {step}; "
        f"their updates were left out. {run.name_batch(first)}. Checkpoints that stand: {kept or 'none yet'}. "
        "Lower optim.lr, set train.clip, or mend those examples"
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
            f"{', '.join(map(str, run.checkpoints.steps())) or 'none'}. Lower optim.lr or set train.clip"
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
        "spikes": run.spikes.record(),
        "spent": run.ledger.spent(),
        "model": model,
    }
    run.checkpoints.save(run.step, state.saved(run.net, run.state), meta, best=best)
