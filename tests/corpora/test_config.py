"""configs/prepare.py: every variant parses, and every field of it decides something."""

import dataclasses
import json

import pytest

from configs import prepare
from jaxft.corpora import options
from jaxft.registry import UserError


@pytest.mark.parametrize("variant", prepare.VARIANTS)
def test_it_parses_and_its_docstring_has_the_command(variant):
    raw = prepare.get_config(variant).to_dict()
    config = options.parse(json.loads(json.dumps(raw)))
    assert config.order and set(config.order) < set(config.rules), "personal data stay unless asked for"
    command = f"python -m jaxft.prepare --config=configs/prepare.py{':' if variant else ''}{variant}"
    assert command in (prepare.__doc__ or "")


def test_a_section_or_field_that_is_missing_or_unknown_is_named():
    for field in dataclasses.fields(options.Config):
        raw = prepare.get_config().to_dict()
        del raw[field.name]
        with pytest.raises(UserError, match=f"config.{field.name} is missing"):
            options.parse(raw)
    for section in ("text", "duplicates", "tokenizer", "work"):
        raw = prepare.get_config().to_dict()
        raw[section]["other"] = 1
        with pytest.raises(UserError, match=f"{section}.other is not an option"):
            options.parse(raw)
    raw = prepare.get_config().to_dict()
    raw["rules"]["pii"]["mail"] = ""
    with pytest.raises(UserError, match=r'rules.pii.mail .*did you mean "email"'):
        options.parse(raw)


def test_a_rule_may_run_twice_with_other_options():
    raw = prepare.get_config().to_dict()
    raw["rules"]["again"] = raw["rules"]["length"] | {"min_characters": 100}
    raw["order"] = ("length", "control", "again")
    assert options.parse(raw).order == ("length", "control", "again")
    raw["order"] = ("length", "length")
    with pytest.raises(UserError, match="names 'length' twice"):
        options.parse(raw)
