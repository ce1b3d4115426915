"""Schedules against transformers and optax at every step."""

import jax
import numpy as np
import optax
import pytest

from jaxft.optim import SCHEDULES, schedules
from jaxft.registry import UserError, lookup

TOTAL, WARMUP = 40, 7
STEPS = np.arange(TOTAL + 10)
OPTIONS = {
    "constant": {},
    "cosine": {"floor": 0.1},
    "inverse_sqrt": {"timescale": 0, "floor": 0.0},
    "linear": {"floor": 0.1},
    "wsd": {"decay": 0.25, "shape": "sqrt", "floor": 0.1},
}


def factors(name, steps=STEPS, **options):
    schedule = lookup(SCHEDULES, name, "schedule.name")
    return np.array([schedule(step, **{"total": TOTAL, "warmup": WARMUP} | options) for step in steps])


def test_linear_equals_optax():
    expected = optax.warmup_constant_schedule(0.0, 1.0, WARMUP)(STEPS) * optax.linear_schedule(
        1.0, 0.2, TOTAL - WARMUP, WARMUP
    )(STEPS)
    np.testing.assert_allclose(factors("linear", floor=0.2), expected, atol=1e-6)


def test_cosine_equals_optax():
    expected = [optax.warmup_cosine_decay_schedule(0.0, 1.0, WARMUP, TOTAL, 0.2)(step) for step in STEPS]
    np.testing.assert_allclose(factors("cosine", floor=0.2), expected, atol=1e-6)


def transformers_factors(make, **options):
    """The factors of a transformers schedule, read from its LambdaLR."""
    torch = pytest.importorskip("torch", reason="transformers' schedules need torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = make(optimizer, num_warmup_steps=WARMUP, **options).lr_lambdas[0]
    return [factor(step) for step in range(TOTAL + 1)]


@pytest.mark.parametrize(
    ("name", "reference", "options", "theirs"),
    [
        ("constant", "get_constant_schedule_with_warmup", {}, {}),
        ("linear", "get_linear_schedule_with_warmup", {"floor": 0.0}, {"num_training_steps": TOTAL}),
        ("cosine", "get_cosine_schedule_with_warmup", {"floor": 0.0}, {"num_training_steps": TOTAL}),
        (
            "cosine",
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"floor": 0.3},
            {"num_training_steps": TOTAL, "min_lr_rate": 0.3},
        ),
        ("inverse_sqrt", "get_inverse_sqrt_schedule", {"timescale": 0, "floor": 0.0}, {}),
        ("inverse_sqrt", "get_inverse_sqrt_schedule", {"timescale": 100, "floor": 0.0}, {"timescale": 100}),
        *(
            (
                "wsd",
                "get_wsd_schedule",
                {"decay": 0.25, "shape": "sqrt" if shape == "1-sqrt" else shape, "floor": 0.0},
                {"num_training_steps": TOTAL, "num_decay_steps": 10, "decay_type": shape},
            )
            for shape in ("linear", "cosine", "1-sqrt")
        ),
    ],
)
def test_equals_transformers_at_every_step(name, reference, options, theirs):
    optimization = pytest.importorskip("transformers.optimization")
    expected = transformers_factors(getattr(optimization, reference), **theirs)
    np.testing.assert_allclose(factors(name, range(TOTAL + 1), **options), expected, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_to_the_peak_then_never_rises_and_ends_flat(name):
    factor = factors(name, **OPTIONS[name])
    np.testing.assert_allclose(factor[: WARMUP + 1], STEPS[: WARMUP + 1] / WARMUP, atol=1e-6)
    assert (np.diff(factor[WARMUP:]) <= 1e-6).all()
    assert (factor[TOTAL:] == factor[TOTAL]).all()
    assert factor.min() >= 0 and factor.max() <= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_the_peak_without_a_warmup(name):
    options = OPTIONS[name] | ({"timescale": 10} if name == "inverse_sqrt" else {})
    assert factors(name, [0], warmup=0, **options) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_the_same_traced(name):
    schedule = lookup(SCHEDULES, name, "schedule.name")
    traced = jax.jit(lambda step: schedule(step, total=TOTAL, warmup=WARMUP, **OPTIONS[name]))
    np.testing.assert_allclose([traced(step) for step in STEPS], factors(name, **OPTIONS[name]), atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [TOTAL, TOTAL + 1, -1])
def test_every_schedule_refuses_a_warmup_that_does_not_end_in_time(name, warmup):
    with pytest.raises(UserError, match=r"warmup=.*total=40|schedule.decay"):
        factors(name, [0], warmup=warmup, **OPTIONS[name] | ({"timescale": 5} if name == "inverse_sqrt" else {}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.linear(0, total=9, warmup=0, floor=1.5), r"schedule\.floor=1\.5"),
        (lambda: schedules.inverse_sqrt(0, total=9, warmup=0, timescale=0, floor=0), r"schedule\.timescale=0"),
        (lambda: schedules.wsd(0, total=9, warmup=0, decay=0.5, shape="sqr", floor=0), "must be one of: linear"),
        (lambda: schedules.wsd(0, total=9, warmup=0, decay=0.0, shape="sqrt", floor=0), "share of the run"),
        (lambda: schedules.wsd(0, total=9, warmup=5, decay=0.9, shape="sqrt", floor=0), "before warmup=5 ends"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
