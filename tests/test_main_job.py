"""The main job as shipped, on the embedded docstrings, for a few steps."""

import json

import pytest

from jaxft.data.docstrings import LIBRARIES
from tests.verbs_run import program, read_rows


@pytest.mark.slow
def test_the_main_job_runs_on_the_embedded_data(tmp_path):
    few = ("--config.train.duration=20 steps", "--config.train.log_every=1", "--config.evaluate.every=20")
    done = program("main", "--config=configs/bert_cls.py", *few, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("jaxft: reading the docstrings")]
    assert told == [], "nothing for a person to worry about"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["split"] == "test" and 0 < report["accuracy"] < 1
    assert [row["label"] for row in report["details"]["classes"]] == sorted(LIBRARIES)
    assert report["details"]["examples"] > 2000
    losses = [record["loss"] for record in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    config = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())
    assert list(config["label2id"]) == sorted(LIBRARIES) and config["vocab_size"] == 8192
