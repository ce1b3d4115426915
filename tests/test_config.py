import copy
import json

import pytest

from configs.bert_cls import VARIANTS, get_config
from jaxft.config import difference, interval, is_due, parse, steps
from jaxft.registry import UserError


@pytest.fixture
def raw():
    return get_config().to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_shipped_variant_parses(variant):
    parse(get_config(variant).to_dict())


@pytest.mark.parametrize("per_epoch", [1.0, 1.4, 7.5, 1393.25])
def test_what_comes_back_every_epoch_falls_on_the_last_step_of_whole_epochs_and_only_once_an_epoch(per_epoch):
    every = interval("1 epoch", "x", per_epoch=per_epoch)
    total = steps("6 epochs", "x", per_epoch=per_epoch)
    due = [step for step in range(1, total + 1) if is_due(step, every)]
    assert len(due) == 6 and due[-1] == total
    assert all(abs(step - k * per_epoch) <= 0.5 for k, step in enumerate(due, 1))


@pytest.mark.parametrize(
    ("duration", "expected"), [("500", 500), ("500 steps", 500), ("1 step", 1), ("2.5 epochs", 250), ("6%", 60), (7, 7)]
)
def test_durations_in_steps_epochs_and_percent(duration, expected):
    assert steps(duration, "x", per_epoch=100.0, total=1000) == expected


def test_a_percentage_without_a_whole_and_nonsense_are_refused():
    with pytest.raises(UserError, match="a percentage needs a whole"):
        steps("5%", "train.duration", per_epoch=1.0)
    with pytest.raises(UserError, match=r"train.duration='soon' is not a duration"):
        steps("soon", "train.duration", per_epoch=1.0)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "batch", "many", "train.batch='many' is a str"),
        ("train", "batch", 0, "train.batch=0 must be 1 or more"),
        ("train", "accumulate", 5, "not divisible by train.accumulate=5"),
        ("train", "duration", "0 steps", "no step at all"),
        ("train", "ema", 1.0, "train.ema=1.0 must be at least 0 and below 1"),
        ("input", "on_bad", "ignore", "input.on_bad='ignore' must be one of: stop, skip"),
        ("model", "dtype", "float23", 'did you mean "float32"'),
        ("model", "attention", "splsh", 'did you mean "splash"'),
        ("evaluate", "every", "often", "evaluate.every='often' is not a duration"),
        ("schedule", "warmup", "x", "schedule.warmup='x' is not a duration"),
    ],
)
def test_a_wrong_value_is_refused_by_field(raw, section, key, value, message):
    raw[section][key] = value
    with pytest.raises(UserError, match=message):
        parse(raw)


def test_a_missing_or_unknown_key_is_refused(raw):
    less, more = copy.deepcopy(raw), copy.deepcopy(raw)
    del less["train"]["clip"]
    more["train"]["clipp"] = 1.0
    with pytest.raises(UserError, match=r"train.clip is missing"):
        parse(less)
    with pytest.raises(UserError, match=r'train.clipp is not an option.*did you mean "clip"'):
        parse(more)


def test_differences_are_listed_by_path_and_survive_json(raw):
    other = json.loads(json.dumps(raw))
    assert difference(raw, other) == []
    other["optim"]["lr"] = 5.0
    del other["train"]["clip"]
    assert difference(raw, other) == ["train.clip: 1.0 -> '(absent)'", f"optim.lr: {raw['optim']['lr']} -> 5.0"] or set(
        difference(raw, other)
    ) == {"train.clip: 1.0 -> '(absent)'", f"optim.lr: {raw['optim']['lr']} -> 5.0"}


def test_a_config_survives_its_json_dump(raw):
    assert parse(json.loads(json.dumps(raw))).train.batch == parse(raw).train.batch
