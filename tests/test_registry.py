import pytest

from jaxft.optim import OPTIMIZERS
from jaxft.registry import UserError, bind, call, lookup

TABLE = {"adamw": f"{__name__}:adamw", "lion": "a.module.that.does.not.exist:lion"}


def adamw(*, lr: float, steps: int = 3, given=None):
    return lr, steps, given


def test_an_unknown_name_lists_the_known_ones_and_the_nearest_without_importing_any():
    with pytest.raises(
        UserError, match=r"optim.name='adamv' is not known; known: adamw, lion; did you mean \"adamw\"\?"
    ):
        lookup(TABLE, "adamv", "optim.name")


def test_a_section_is_a_call_with_its_keywords():
    assert call(TABLE, {"name": "adamw", "lr": 1, "steps": 5}, "optim", given="x") == (1, 5, "x")
    assert bind(TABLE, {"name": "adamw"}, "optim", "lr")(lr=2.0) == (2.0, 3, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 1.0, "step": 2}, r'optim.step is not an option here; .*did you mean "steps"'),
        ({}, "optim.lr is missing"),
        ({"lr": "fast"}, "optim.lr='fast' is a str; it must be a float"),
        ({"lr": 1.0, "steps": 2.5}, "optim.steps=2.5 is a float; it must be a int"),
        ({"lr": True}, "optim.lr=True is a bool"),
        ({"lr": float("inf")}, "optim.lr=inf must be a finite number"),
        ({"lr": float("nan")}, "optim.lr=nan must be a finite number"),
    ],
)
def test_a_wrong_option_names_the_field_and_what_would_be_right(options, message):
    with pytest.raises(UserError, match=message):
        call(TABLE, {"name": "adamw", **options}, "optim")


def test_another_name_with_the_options_of_the_old_one_is_told_how_to_give_its_own():
    section = {"name": "sgd", "lr": 0.1, "b1": 0.9, "weight_decay": 0.0}
    with pytest.raises(UserError) as caught:
        bind(OPTIMIZERS, section, "optim", schedule=None, decay_mask=None, multiplier=None)
    text = "--config.optim=\"{'name': 'sgd', 'lr': 0.1, 'momentum': FLOAT, 'nesterov': BOOL, 'weight_decay': 0.0"
    assert "optim.b1 is not an option here" in str(caught.value) and text in str(caught.value)
