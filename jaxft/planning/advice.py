"""What to change where a step does not fit its chips, and by how much: computed from its parts, not tried (search.py)."""

from collections.abc import Iterator

from jaxft.config import Config
from jaxft.planning.measure import Step

GIB = 2**30
MOMENTS = {"bfloat16": 1 / 2, "8bit": 0.51 / 2}  # of a moment in float32; with the scales of 8 bits


def advice(config: Config, step: Step, limit: float) -> list[str]:
    """Knobs with the bytes that each saves, the strongest first. `limit`: bytes a device has for a program."""
    over = step.total - limit
    knobs = sorted(_knobs(config, step), key=lambda knob: -knob[0])
    lines = [
        f"{text}: saves {'up to ' if upto else ''}{saved / GIB:.2f} GiB" for saved, text, upto in knobs if saved > 0
    ]
    first = f"{over:,.0f} bytes ({over / GIB:.2f} GiB) too many on each device"
    return [first, *lines] if lines else [first, "take a larger topology, or a smaller model"]


def _knobs(config: Config, step: Step) -> Iterator[tuple[float, str, bool]]:
    """(bytes saved, what to set, whether that is the most it can be)."""
    state = step.parameters + step.optimizer + step.other_state
    # Where the compiler found no room it does not say what waits for the backward pass.
    work = step.activations or max(0.0, step.total - state - step.batch)
    fsdp, data = step.mesh["fsdp"], step.mesh["data"]
    if data > 1:
        saved = state * (1 - 1 / data)
        yield saved, f"mesh.fsdp={fsdp * data}, mesh.data=1 (the state shared out over all of them)", False
    if (moments := config.optim.get("moments")) == "float32":
        for name, share in MOMENTS.items():
            saved = (step.optimizer - step.host) * (1 - share * (2 if name == "bfloat16" else 2)) if False else 0
            saved = (step.optimizer - step.host) * (1 - _share(moments, name))
            yield saved, f"optim.moments={name!r}", False
    if config.optim["name"] == "adamw":
        yield step.optimizer * 0.95, "optim.name='adafactor' (a section of its own)", True
    if config.model.remat == "none":
        yield work * 0.6, "model.remat='dots' (what is not a matrix product is computed again)", True
        yield work * 0.9, "model.remat='full' (a third more computing)", True
    elif config.model.remat == "dots":
        yield work * 0.7, "model.remat='full' (a third more computing)", True
    shards = data * fsdp * step.mesh["expert"]
    rows = config.train.batch // config.train.accumulate // shards
    if rows > 1:
        yield work / 2, f"train.accumulate={config.train.accumulate * 2} (the same batch in twice as many pieces)", True
    elif step.mesh["tensor"] == 1:
        yield (work + state) / 2, "mesh.tensor=2 (and half of mesh.fsdp)", True
    if config.train.ema:
        yield step.other_state, "train.ema=0 (no moving average)", True
