"""Whole runs with adapters: stopped and gone on with, exported, merged, compared with one another."""

import argparse

import numpy as np
import pytest

from jaxft import build
from jaxft.config import parse
from jaxft.export import export
from jaxft.registry import UserError
from jaxft.signals import Stopped
from jaxft.train import train
from tests import every_task, program
from tests.verbs_run import here, read_rows, write_rows

pytestmark = pytest.mark.slow

LORA = {"name": "lora", "target": "all-linear", "rank": 2, "dropout": 0.25}
METHODS = {
    "lora": (LORA, "nf4"),
    "adalora": ({"name": "adalora", "init_rank": 3, "target_rank": 1, "tinit": "1", "tfinal": "1", "delta_t": 1}, ""),
}
STOP = 2


def config(tmp_path, hf, peft, task="cls", frozen="", **changed):
    raw = every_task.config(task, tmp_path, model__hf=str(hf), train__batch=8, **changed)
    raw["peft"], raw["model"]["frozen_dtype"] = peft, frozen
    return raw


def go(raw, folder, allow=()):
    said = []
    train(raw, parse(raw), folder, allow, said.append)
    return said


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The hf/ of a finished run: what the adapters are of."""
    folder = tmp_path_factory.mktemp("base")
    raw = every_task.config("cls", folder)
    train(raw, parse(raw), folder / "run", (), lambda text: None)
    return folder / "run" / "hf"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base):
    """A finished run with an adapter."""
    folder = tmp_path_factory.mktemp("finished")
    go(config(folder, base, LORA, optim__lr=0.1), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(name, base, tmp_path, monkeypatch):
    peft, frozen = METHODS[name]
    raw = config(tmp_path, base, peft, frozen=frozen, optim__lr=0.1)
    go(raw, tmp_path / "unbroken")
    with program.stopping(monkeypatch, STOP), pytest.raises(Stopped):
        go(raw, tmp_path / "stopped")
    assert f"resuming from the checkpoint of step {STOP}" in go(raw, tmp_path / "stopped")
    program.assert_same_end(tmp_path / "stopped", tmp_path / "unbroken")


def test_checkpoints_hold_the_adapter_alone_and_the_folder_is_one(finished):
    arrays = program.arrays(finished, max(program.steps(finished)))
    held = [name for name in arrays if name.startswith(("params/", "frozen/"))]
    assert held and not [name for name in held if "/adapter/" not in name and not name.startswith("params/head/")]
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= {
        path.name for path in (finished / "hf").iterdir()
    }
    assert not (finished / "hf" / "model.safetensors").exists()


def test_a_run_whose_base_has_changed_is_refused(base, tmp_path):
    copy = tmp_path / "base"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    raw = config(tmp_path, copy, LORA)
    go(raw, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + np.float32(1.5).tobytes())
    with pytest.raises(UserError, match=r"made from other inputs: model\.hf changed"):
        go(raw, tmp_path / "run")
    arguments = _arguments(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="holds other weights than when step"):
        export(arguments)


def _arguments(run, out, *, merge=False, verify=False, dtype="float32"):
    return argparse.Namespace(run=str(run), out=str(out), step="best", dtype=dtype, merge=merge, verify=verify)


def test_an_adapter_has_one_dtype(finished, tmp_path):
    with pytest.raises(UserError, match="an adapter is written in float32; add --merge"):
        export(_arguments(finished, tmp_path / "out", dtype="bfloat16"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_of_a_model_in_few_bits_is_verified_merged(base, tmp_path):
    go(config(tmp_path, base, LORA, frozen="int8"), tmp_path / "run")
    with pytest.raises(UserError, match="the run kept its model in int8"):
        export(_arguments(tmp_path / "run", tmp_path / "out", verify=True))
    export(_arguments(tmp_path / "run", tmp_path / "out", merge=True, verify=True))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("merge", [False, True])
def test_an_export_computes_what_the_checkpoint_does(finished, tmp_path, merge, capsys):
    pytest.importorskip("peft")
    export(_arguments(finished, tmp_path / "out", merge=merge, verify=True))
    assert "verified: logits read by transformers differ by at most" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists() is merge


def test_merging_a_run_without_an_adapter_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="is a run without an adapter"):
        export(_arguments(base.parent, tmp_path / "out", merge=True))


def test_several_adapters_of_one_model_are_compared_and_the_model_is_read_once(finished, base, tmp_path, monkeypatch):
    other = config(tmp_path, base, {**LORA, "target": "attention"}, optim__lr=0.1, seed=1)
    go(other, tmp_path / "other")
    source = write_rows(tmp_path / "x.jsonl", every_task.rows(7))
    reads, read = [], build.hf_load.load
    monkeypatch.setattr(build.hf_load, "load", lambda *args, **options: reads.append(args[0]) or read(*args, **options))
    pair = [f"--adapter=a={finished / 'hf'}", f"--adapter=b={tmp_path / 'other' / 'hf'}"]
    here("predict", *pair, f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")
    assert reads == [base]
    both = read_rows(tmp_path / "y.jsonl")
    for name, run in (("a", finished), ("b", tmp_path / "other")):
        here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'one.jsonl'}")
        for row, alone in zip(both, read_rows(tmp_path / "one.jsonl"), strict=True):
            mine = row[f"{name}_predicted_probabilities"]
            assert mine == pytest.approx(alone["predicted_probabilities"], abs=1e-6)
    assert both[0]["a_predicted_probabilities"] != both[0]["b_predicted_probabilities"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter=here"], "write --adapter=NAME=FOLDER"),
        (["--adapter=a=x", "--run=y"], "name the run's hf/ as another --adapter"),
        (["--adapter=a=x", "--adapter=a=y"], "a NAME is there twice"),
    ],
)
def test_flags_of_adapters_that_make_no_sense_are_refused(flags, message, tmp_path):
    source = write_rows(tmp_path / "x.jsonl", every_task.rows(2))
    with pytest.raises(UserError, match=message):
        here("predict", *flags, f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")


@pytest.mark.parametrize("task", ["dpo", "seq2seq"])
def test_other_tasks_train_an_adapter_by_the_same_loop(task, tmp_path):
    first = every_task.config(task, tmp_path)
    train(first, parse(first), tmp_path / "base", (), lambda text: None)
    raw = config(tmp_path, tmp_path / "base" / "hf", LORA, task=task)
    said = go(raw, tmp_path / "run")
    assert any("% train" in text for text in said) and (tmp_path / "run" / "hf" / "adapter_config.json").exists()
