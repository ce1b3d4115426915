"""What to change where a step does not fit its chips, and by how much: computed from its parts, and not tried."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxft.chips import GIB
from jaxft.config import Config
from jaxft.planning.measure import Step

# Bytes of moments in fewer bits, as a share of those in float32: optim/moments.py.
MOMENTS = {"bfloat16": 0.5, "8bit": 2.03 / 8}


class Knob(NamedTuple):
    saved: float  # bytes on a device
    text: str
    most: bool  # that is the most it can be: not all of what it works on shrinks


def advice(config: Config, step: Step, limit: float) -> list[str]:
    """How many bytes are too many, and knobs with the bytes that each saves. `limit`: bytes that a device has."""
    over = step.total - limit
    first = f"{over:,.0f} bytes ({over / GIB:.2f} GiB) too many on each device"
    knobs = [knob for knob in _knobs(config, step, limit) if knob.saved > GIB / 100]
    if not knobs:
        return [first, "take a larger topology, or a smaller model"]
    knobs.sort(key=lambda knob: -knob.saved)
    return [first, *(f"{k.text}: saves {'up to ' * k.most}{k.saved / GIB:.2f} GiB" for k in knobs)]


def _knobs(config: Config, step: Step, limit: float) -> Iterator[Knob]:
    state, moments = step.parameters + step.optimizer + step.other_state, step.optimizer - step.host
    # Where the compiler found no room it does not say what waits for the backward pass: then all of its work.
    work = step.activations or max(0.0, step.total - state - step.batch_bytes)
    if (data := step.mesh["data"]) > 1:
        yield Knob(
            state * (1 - 1 / data),
            f"mesh.data=1, mesh.fsdp={data * step.mesh['fsdp']} (the state is shared out over all of them)",
            False,
        )
    if config.optim.get("moments") == "float32":
        for form, share in MOMENTS.items():
            yield Knob(moments * (1 - share), f"optim.moments={form!r}", True)
    if not config.train.offload:
        yield Knob(moments, "train.offload=True (the optimizer's state waits with the host)", True)
    for remat, share in {"none": (("dots", 0.5), ("full", 0.9)), "dots": (("full", 0.8),), "full": ()}[
        config.model.remat
    ]:
        yield Knob(work * share, f"model.remat={remat!r} (computes more again)", True)
    most = config.train.batch // config.train.accumulate // (data * step.mesh["fsdp"] * step.mesh["expert"])
    enough = next((n for n in _divisors(most) if step.total - work * (1 - 1 / n) <= limit), most)
    if enough > 1:
        pieces = enough * config.train.accumulate
        yield Knob(work * (1 - 1 / enough), f"train.accumulate={pieces} (the same batch in {pieces} pieces)", True)
    if step.mesh["fsdp"] % 2 == 0:
        yield Knob(work / 2, f"mesh.tensor={2 * step.mesh['tensor']}, mesh.fsdp={step.mesh['fsdp'] // 2}", True)
    if config.train.ema:
        yield Knob(step.parameters, "train.ema=0.0 (no moving average)", False)


def _divisors(number: int) -> list[int]:
    return [n for n in range(2, number + 1) if number % n == 0]
