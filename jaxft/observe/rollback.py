"""A spike of the loss attended to: said, and where the config wishes it the run goes back to before it."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxft import processes
from jaxft.observe.spikes import Spike
from jaxft.registry import UserError


@dataclass(frozen=True)
class Rollback:
    """The run is to go on after step `to`, because of `spike`."""

    spike: Spike
    to: int
    examples: list[str]  # where those of the batch of the spike were read


def attend(run: Any, writer: Any, step: int, loss: float) -> Rollback | None:
    """Judges the loss of a step. Raises UserError where one rollback more would be too many.

    All processes decide alike: the loss is of all, and so are the checkpoints.
    """
    goes_back, most = run.config.spikes.action == "rollback", run.config.spikes.max_rollbacks
    spike = run.spikes.add(step, loss)
    if spike is None:
        return None
    examples, to = run.examples(step), None
    if goes_back:
        with run.ledger.of("lost"):
            run.checkpoints.wait()  # none is later than the spike: no step is saved whose loss nobody has seen
            to = run.checkpoints.newest()
    if to is None:
        none = ". There is no checkpoint before it: the run goes on" if goes_back else ""
        run.say(f"{spike}. {run.name_batch(step)}{none}")
        writer.spiked(step, loss, examples)
        return None
    if len(run.detours) >= most:
        raise UserError(
            f"{spike}, after {len(run.detours)} rollbacks, which are all that spikes.max_rollbacks allows. "
            f"{run.name_batch(step)}. Checkpoints that stand: {', '.join(map(str, run.checkpoints.steps()))}. "
            "Lower optim.lr or train.clip, mend the data, or set spikes.sigma higher (with --allow_change=spikes)"
        )
    run.say(f"{spike}. {run.name_batch(step)}")
    return Rollback(spike, to, examples)


def go_back(run: Any, wanted: Rollback) -> None:
    """Lets the run be what its checkpoint was, and skip the batches that it has used since."""
    skipped = run.detours.add(wanted.spike, wanted.to, writes=processes.first())
    for leaf in jax.tree.leaves(run.state):  # there may be no room for two states
        leaf.delete()
    run.state = run.restore(wanted.to)
    run.say(f"going on from the checkpoint of step {wanted.to:,} without the {skipped} batches that followed it")
