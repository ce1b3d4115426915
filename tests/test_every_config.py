"""What holds for every file in configs/ and each of its variants: it parses, and nothing in it goes unread.

That of `prepare`, which is no run, has its tests in corpora/.
"""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

from jaxft import build, registries
from jaxft import config as config_module
from jaxft.config import CALLS, Config, parse
from jaxft.registry import lookup
from jaxft.train import train
from tests.verbs_run import ROOT, reviews, write_rows

ROOM = ROOT / "configs"
FILES = sorted(str(path.relative_to(ROOM).with_suffix("")) for path in ROOM.rglob("*.py"))
FILES = [name for name in FILES if not name.endswith("__init__") and name != "prepare"]


def module(name):
    return importlib.import_module(f"configs.{name.replace('/', '.')}")


VARIANTS = [(name, variant) for name in FILES for variant in module(name).VARIANTS]
SECTIONS = {
    field.name: kind
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(kind := config_module.section_type(field))
}


def load(name, variant):
    return module(name).get_config(variant).to_dict()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_it_parses_and_every_name_in_it_is_registered(name, variant):
    config = parse(load(name, variant))
    registries.check_names(config)
    assert config.model.hf or config.input.length <= build.family_config(config.model, None)[1].positions


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_call_section_shows_every_option_of_its_function_that_has_no_default(name, variant):
    """`classes` and the like may stay away; nothing may be there that the function does not take."""
    raw = load(name, variant)
    given = {"optim": {"schedule", "decay_mask", "multiplier"}, "schedule": {"step", "total", "warmup"}}
    for section in CALLS:
        function = lookup(registries.ALL[section], raw[section]["name"], f"{section}.name")
        options = inspect.signature(function).parameters.values()
        wanted = {p.name for p in options} - given.get(section, set())
        needed = {p.name for p in options if p.default is p.empty} - given.get(section, set())
        shown = set(raw[section]) - {"name"} - ({"warmup"} if section == "schedule" else set())
        assert needed <= shown <= wanted, section


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_its_docstring_has_the_command_that_runs_it(name, variant):
    text = module(name).__doc__
    assert f"python -m jaxft.main --config=configs/{name}.py" in text and f":{variant}" in text


@pytest.fixture
def reads(monkeypatch):
    """(section, key) of everything that is read from a config while the test runs; parsing does not count."""
    seen = set()

    def spied(section, kind):
        keys = {field.name for field in dataclasses.fields(kind)}

        def read(self, key):
            if key in keys:
                seen.add((section, key))
            return object.__getattribute__(self, key)

        return read

    def start():
        for section, kind in SECTIONS.items():
            monkeypatch.setattr(kind, "__getattribute__", spied(section, kind), raising=False)

    return seen, start


def test_every_key_of_every_section_is_read_by_a_run(reads, tmp_path):
    seen, start = reads
    raw = load("bert_cls", "files")
    raw["data"]["train"] = str(write_rows(tmp_path / "x.jsonl", reviews(60, 0)))
    raw["model"]["hf"], raw["model"]["scratch"] = "", dict(layers=1, d_model=16, d_ff=16, heads=2, positions=32)
    raw["input"].update(length=32, pack=2)
    raw["tokenizer"]["vocab"] = 100
    raw["train"].update(batch=8, duration="2 steps", log_every="1")
    raw["evaluate"].update(batch=8)
    config = parse(raw)
    start()
    train(raw, config, tmp_path / "run", (), lambda text: None)
    everything = {(section, field.name) for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)}
    assert everything - seen == set(), "keys that change nothing"
    assert Path(tmp_path / "run" / "report.json").exists() and config_module.parse(raw)
