"""The config: loaded, checked before anything slow starts, resolved, dumped.

Two kinds of section. A *call* (`data`, `task`, `peft`, `optim`, `schedule`) has a name and the keywords of the function
that a registry finds under it: the function's signature is the schema. Every other section is one of the dataclasses
below. There are no defaults here: a config file shows every field.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from jaxft.registry import UserError, check_options, nearest


@dataclass(frozen=True)
class Input:
    length: int  # tokens in a row
    pack: int  # examples a row may hold; 1 switches packing off
    on_bad: str  # "stop" or "skip": what a row that cannot be used does

    def __post_init__(self) -> None:
        _positive("input", self, "length", "pack")
        _one_of("input.on_bad", self.on_bad, ("stop", "skip"))


@dataclass(frozen=True)
class Tokenizer:
    name: str  # kind of the tokenizer that is trained when model.hf names none, a key of hf.trainers.TRAINERS
    vocab: int  # its entries, at most
    lowercase: bool

    def __post_init__(self) -> None:
        _positive("tokenizer", self, "vocab")


@dataclass(frozen=True)
class Model:
    name: str  # family of a model from random weights, a key of models.MODELS; a checkpoint brings its own
    hf: str  # hub id or folder to start from; "" starts from random weights
    scratch: dict  # fields of the family's Config for random weights; a checkpoint brings its own
    override: dict  # fields of the checkpoint's Config to replace, such as dict(dropout=0.2)
    dtype: str  # of matmuls and activations; "auto": bfloat16 on TPU and GPU, float32 on CPU
    param_dtype: str  # of parameters and optimizer state
    frozen_dtype: str  # of matrices that a method in peft keeps as they are, "int8" and "nf4" too; "": as param_dtype
    scan: bool  # run equal blocks by lax.scan: compiles faster, runs slower
    remat: str  # "none", "dots" or "full": what the backward pass recomputes
    attention: str  # "auto", or who computes it: "dense", "chunked", "cudnn" or "splash" (layers/kernels/choice.py)
    reset_head: bool  # draw a new head although the checkpoint has one

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _one_of("model.param_dtype", self.param_dtype, ("float32", "bfloat16"))
        _one_of("model.frozen_dtype", self.frozen_dtype, ("", "float32", "bfloat16", "int8", "nf4"))
        _one_of("model.remat", self.remat, ("none", "dots", "full"))
        _one_of("model.attention", self.attention, ("auto", "dense", "chunked", "cudnn", "splash"))


@dataclass(frozen=True)
class Train:
    batch: int  # rows a step, over all devices
    duration: str  # "3 epochs" or "1000 steps"
    accumulate: int  # micro-batches a step
    clip: float  # largest global gradient norm; 0 switches clipping off
    layer_decay: float  # learning-rate factor from one layer to the one below; 1 switches it off
    freeze: tuple  # regexes of parameter paths that keep their values
    ema: float  # decay of a moving average of the weights, used for evaluation and export; 0 switches it off
    offload: bool  # keep the optimizer's state in the host's memory between updates
    max_bad_steps: int  # non-finite updates in a row before the run stops
    log_every: str  # cadence

    def __post_init__(self) -> None:
        _positive("train", self, "batch", "accumulate", "max_bad_steps")
        if self.batch % self.accumulate:
            raise UserError(f"train.batch={self.batch} is not divisible by train.accumulate={self.accumulate}")
        _within("train.ema", self.ema, 0, 1)
        _within("train.clip", self.clip, 0, float("inf"))
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"train.layer_decay={self.layer_decay} must be above 0 and at most 1 (1: off)")


@dataclass(frozen=True)
class Evaluate:
    every: str  # cadence, such as "1 epoch", "500 steps", "25%"
    batch: int  # rows a step
    patience: int  # evaluations without a better metric before the run stops; 0 switches early stopping off

    def __post_init__(self) -> None:
        _positive("evaluate", self, "batch")
        _within("evaluate.patience", self.patience, 0, float("inf"))


@dataclass(frozen=True)
class Checkpoint:
    every: str  # cadence
    keep: int  # newest checkpoints to keep, besides the best one
    export: str  # "best" or "last": which weights are tested and exported

    def __post_init__(self) -> None:
        _positive("checkpoint", self, "keep")
        _one_of("checkpoint.export", self.export, ("best", "last"))


@dataclass(frozen=True)
class Sharding:
    params: dict  # dimension letter of a parameter -> mesh axis
    activations: dict  # dimension letter of an activation -> mesh axis or axes


@dataclass(frozen=True)
class Mesh:
    data: int
    fsdp: int
    tensor: int
    context: int
    expert: int


@dataclass(frozen=True)
class Log:
    tensorboard: bool
    wandb: str  # project; "" switches Weights & Biases off


@dataclass(frozen=True)
class Profile:
    steps: tuple[int, ...]  # first and last step of which a trace is written; () for none

    def __post_init__(self) -> None:
        steps = self.steps if isinstance(self.steps, (list, tuple)) else (self.steps,)
        whole = all(type(step) is int for step in steps)
        if len(steps) and not (whole and len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise UserError(f"profile.steps={self.steps!r} must be the first and the last step, such as 10,13, or ()")


@dataclass(frozen=True)
class Spikes:
    sigma: float  # how far above the median of recent losses one is a spike (observe/spikes.py); 0: none is
    window: int  # how many losses are recent
    action: str  # "say", or "rollback": go on from the checkpoint before it, without the batches that led to it
    max_rollbacks: int  # of a run; one more ends it

    def __post_init__(self) -> None:
        _within("spikes.sigma", self.sigma, 0, float("inf"))
        if self.window < 8:
            raise UserError(f"spikes.window={self.window} must be 8 or more; of fewer losses a spread says nothing")
        _one_of("spikes.action", self.action, ("say", "rollback"))
        _within("spikes.max_rollbacks", self.max_rollbacks, 0, float("inf"))


@dataclass(frozen=True)
class Config:
    seed: int
    data: dict
    input: Input
    tokenizer: Tokenizer | None  # None: the task reads no text, or a corpus that brings its own
    task: dict
    model: Model
    peft: dict
    optim: dict
    schedule: dict
    train: Train
    evaluate: Evaluate
    checkpoint: Checkpoint
    mesh: Mesh
    sharding: Sharding
    log: Log
    profile: Profile
    spikes: Spikes


def section_type(field: Any) -> Any:
    """The dataclass of a section, also of one that may be None."""
    return next((kind for kind in get_args(field.type) if kind is not type(None)), field.type)


CALLS = ("data", "task", "peft", "optim", "schedule")


def parse(raw: Mapping[str, Any]) -> Config:
    """Plain nested dicts (a ConfigDict's `to_dict`, or config.json) as a Config.

    Raises UserError for a missing or unknown section, key or type; imports nothing heavy.
    """
    check_options(Config, {name: value for name, value in raw.items()}, "config")
    values: dict[str, Any] = {}
    for field in fields(Config):
        value = raw[field.name]
        if field.name == "seed":
            if not 0 <= value < 2**32:
                raise UserError(f"seed={value} must be at least 0 and below 2**32")
            values["seed"] = value
        elif value is None and section_type(field) is not field.type:
            values[field.name] = None
        elif not isinstance(value, Mapping):
            raise UserError(f"config.{field.name}={value!r} must be a section (a dict)")
        elif field.name in CALLS:
            if "name" not in value:
                raise UserError(f"{field.name}.name is missing; {field.name} is a call: dict(name=..., options)")
            values[field.name] = dict(value)
        else:
            section = section_type(field)
            check_options(section, value, field.name)
            values[field.name] = section(**value)
    config = Config(**values)
    _check_durations(config)
    return config


_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(steps?|epochs?|%)?\s*")


def steps(duration: str, field: str, *, per_epoch: float, total: int | None = None) -> int:
    """`duration` ("500", "500 steps", "2.5 epochs", or "6%" of `total`) in steps, rounded.

    `per_epoch` is steps per epoch, as a fraction. Raises UserError for anything else.
    """
    return round(interval(duration, field, per_epoch=per_epoch, total=total))


def interval(duration: str, field: str, *, per_epoch: float, total: int | None = None) -> float:
    """As `steps`, but not rounded: for what comes back, such as "1 epoch" of 1,393.25 steps."""
    match = _DURATION.fullmatch(str(duration))
    if match is None:
        raise UserError(f'{field}={duration!r} is not a duration; write "500 steps", "2 epochs" or "25%"')
    amount, unit = float(match[1]), match[2] or "steps"
    if unit == "%":
        if total is None:
            raise UserError(f'{field}={duration!r}: a percentage needs a whole; write "500 steps" or "2 epochs"')
        return amount / 100 * total
    return amount * per_epoch if unit.startswith("epoch") else round(amount)


def is_due(step: int, every: float) -> bool:
    """Whether one of every, 2 x every, ... falls on `step`, rounded: the last of whole epochs is the last step."""
    return step == round(round(step / every) * every)


def _check_durations(config: Config) -> None:
    if "warmup" not in config.schedule:
        raise UserError('schedule.warmup is missing; every schedule has one, such as "6%" or "0"')
    total = steps(config.train.duration, "train.duration", per_epoch=1000.0)
    if total < 1:
        raise UserError(f"train.duration={config.train.duration!r} is no step at all")
    for field, value in (
        ("evaluate.every", config.evaluate.every),
        ("checkpoint.every", config.checkpoint.every),
        ("train.log_every", config.train.log_every),
        ("schedule.warmup", config.schedule["warmup"]),
    ):
        if steps(value, field, per_epoch=1e9, total=10**9) < 1 and field != "schedule.warmup":
            raise UserError(f'{field}={value!r} is never; write "500 steps", "1 epoch" or "25%"')


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """'train.batch: 8 -> 16' for every leaf in which two nested dicts differ; tuples equal lists, as in JSON."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        missing = "(absent)"
        return [
            line
            for key in keys
            for line in difference(
                old.get(key, missing),
                new.get(key, missing),
                f"{path}.{key}" if path else str(key),
            )
        ]
    plain_old, plain_new = (list(v) if isinstance(v, tuple) else v for v in (old, new))
    return [] if plain_old == plain_new else [f"{path}: {old!r} -> {new!r}"]


def _positive(section: str, values: Any, *names: str) -> None:
    for name in names:
        if getattr(values, name) < 1:
            raise UserError(f"{section}.{name}={getattr(values, name)} must be 1 or more")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise UserError(f"{field}={value} must be at least {low} and below {high}")


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{field}={value!r} must be one of: {', '.join(known)}{nearest(value, known)}")
