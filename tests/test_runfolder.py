import json
import subprocess

import pytest

from jaxft import manifest, runfolder
from jaxft.registry import UserError
from jaxft.runfolder import RunFolder

CONFIG = {"seed": 0, "train": {"batch": 8, "freeze": ()}, "mesh": {"data": 1}, "log": {"wandb": ""}}


@pytest.fixture
def folder(tmp_path):
    """A folder whose run has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.record(CONFIG)
    return folder


def test_one_flag_allows_a_change_and_what_follows_from_it(folder):
    folder.record(CONFIG | {"input": {"length": 16}, "task": {"metric": ""}, "model": {"hf": "a"}})
    for changed, flag in (
        ({"input": {"length": 8}}, "seed,input.length,data"),
        ({"task": {"metric": "f1"}}, "seed,task.metric,data"),
        ({"model": {"hf": "b"}, "input": {"length": 8}}, "seed,input.length,model.hf,data,tokenizer"),
    ):
        with pytest.raises(UserError) as caught:
            folder.claim(json.loads(folder.config.read_text())["config"] | changed | {"seed": 1}, ("seed",), print)
        assert str(caught.value).endswith(f"--allow_change={flag}")
    with pytest.raises(UserError) as caught:
        folder.claim(json.loads(folder.config.read_text())["config"] | changed, ("data",), print)
    assert str(caught.value).endswith("--allow_change=data,input.length,model.hf,tokenizer")


def with_train(**changes):
    return CONFIG | {"train": CONFIG["train"] | changes}


def sealed(path):
    path.mkdir(parents=True)
    (path / "file").write_text("x")
    manifest.seal(path)


def test_the_same_config_is_silently_the_same_run_tuples_and_all(folder):
    said = []
    folder.claim(with_train(freeze=[]), (), said.append)
    assert not said


def test_every_difference_is_listed_with_the_flag_that_allows_it(folder):
    with pytest.raises(UserError) as caught:
        folder.claim(with_train(batch=16, freeze=("head/.*",)) | {"seed": 1}, (), print)
    message = str(caught.value)
    for line in ("seed: 0 -> 1", "train.batch: 8 -> 16", "train.freeze: [] -> ['head/.*']"):
        assert f"\n  {line}\n" in message
    assert message.endswith("--allow_change=seed,train.batch,train.freeze")


@pytest.mark.parametrize("allow", [("train.batch",), ("train",), ("seed", "train.batch")])
def test_an_allowed_change_is_said(folder, allow):
    said = []
    folder.claim(with_train(batch=16), allow, said.append)
    assert said == ["changed since this run began: train.batch: 8 -> 16"]


@pytest.mark.parametrize("allow", [("train.bat",), ("tr",), ("batch",), ("train.batch.x",)])
def test_a_part_of_a_name_allows_nothing(folder, allow):
    with pytest.raises(UserError, match=r"train.batch: 8 -> 16"):
        folder.claim(with_train(batch=16), allow, print)


def test_where_it_runs_and_what_it_shows_may_change(folder):
    said = []
    folder.claim(CONFIG | {"mesh": {"data": 4}, "log": {"wandb": "x"}}, (), said.append)
    assert said == [
        "changed since this run began: mesh.data: 1 -> 4",
        "changed since this run began: log.wandb: '' -> 'x'",
    ]


def test_a_refused_or_unfinished_start_leaves_the_recorded_config(folder):
    before = folder.config.read_bytes()
    with pytest.raises(UserError):
        folder.claim(with_train(batch=16), (), print)
    folder.claim(with_train(batch=16), ("train",), lambda _text: None)
    assert folder.config.read_bytes() == before
    folder.record(with_train(batch=16))
    assert json.loads(folder.config.read_text())["config"]["train"]["batch"] == 16


def test_a_tokenizer_and_a_template_belong_to_a_checkpoint_or_go(folder):
    template = folder.path / runfolder.TEMPLATE
    folder.tokenizer.mkdir()
    template.touch()
    (folder.checkpoints / "5.tmp").mkdir(parents=True)
    folder.claim(CONFIG, (), print)
    assert not folder.tokenizer.exists() and not template.exists() and not folder.started()
    folder.tokenizer.mkdir()
    template.touch()
    sealed(folder.checkpoints / "5")
    folder.claim(CONFIG, (), print)
    assert folder.tokenizer.exists() and template.exists() and folder.started()


def test_a_finished_run_keeps_its_tokenizer_without_checkpoints(folder):
    folder.tokenizer.mkdir()
    assert not folder.finished()
    folder.report.touch()
    folder.claim(CONFIG, (), print)
    assert folder.finished() and folder.tokenizer.exists()


def test_a_config_that_cannot_be_read_is_named(folder):
    folder.config.write_text("{")
    with pytest.raises(UserError, match=r"config.json: cannot be read as JSON"):
        folder.claim(CONFIG, (), print)


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"--workdir=\S+: {tmp_path}/file is a file; name a folder"):
        RunFolder(tmp_path / "file" / below).create()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written; name another one"):
        RunFolder(tmp_path).create()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / "x.json.tmp").write_text("of a process that was killed")
    runfolder.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runfolder.write_json(path, {"a": object()})
    assert runfolder.read_json(path) == {"a": 1} and [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_run_that_goes_on_under_other_versions_says_so_and_keeps_the_history(folder, monkeypatch):
    sealed(folder.checkpoints / "5")
    first, said = json.loads(folder.config.read_text()), []
    now = first["versions"]
    for changed in ({"jaxlib": "99.0"}, {"jaxlib": "99.0", "grain": "99.0"}):
        monkeypatch.setattr(runfolder, "versions", lambda changed=changed: now | changed)
        for _ in range(2):
            folder.claim(CONFIG, (), said.append)
            folder.record(CONFIG)
    assert len(said) == 1 and f"jaxlib {now['jaxlib']} -> 99.0" in said[0] and "under the same versions only" in said[0]
    record = json.loads(folder.config.read_text())
    assert record["versions"] == now | changed
    assert [entry["versions"] for entry in record["earlier"]] == [now, now | {"jaxlib": "99.0"}]
    assert record["earlier"][0]["git"] == first["git"]


def test_without_a_checkpoint_no_bits_are_promised(folder, monkeypatch):
    monkeypatch.setattr(runfolder, "versions", lambda: {"jax": "99.0"})
    folder.claim(CONFIG, (), pytest.fail)
    folder.record(CONFIG)
    assert json.loads(folder.config.read_text())["earlier"] == []


def test_versions_and_commit_are_recorded(folder, monkeypatch):
    record = json.loads(folder.config.read_text())
    assert record["versions"]["jax"][0].isdigit() and record["versions"]["python"].startswith("3.")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert runfolder.git_commit() == ""
