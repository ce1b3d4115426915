"""The notebooks of colab/ run from top to bottom, small enough for a test, and are kept as they were run."""

import json
import os
import re

import pytest

from tests.verbs_run import ROOT

nbclient = pytest.importorskip("nbclient", reason="runs notebooks")
nbformat = pytest.importorskip("nbformat", reason="reads notebooks")

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
SMALL = """
config.update_from_flattened_dict({
    "tokenizer.vocab": 600, "input.length": 64, "model.scratch.positions": 96, "model.scratch.layers": 1,
    "model.scratch.d_model": 32, "model.scratch.d_ff": 64, "model.scratch.heads": 2, "schedule.warmup": "2 steps",
    "train.duration": "8 steps", "train.log_every": "2 steps", "evaluate.every": "4 steps", "evaluate.batch": 256,
    "checkpoint.every": "4 steps",
})
"""


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(notebook, kind):
    """What the outputs of a notebook hold of a kind of data, "text/html" say."""
    return [output["data"][kind] for output in outputs(notebook) if kind in output.get("data", {})]


def printed(notebook):
    return "".join(output["text"] for output in outputs(notebook) if output.output_type == "stream")


def test_there_are_the_three_of_them():
    assert [path.stem for path in NOTEBOOKS] == ["chat_sft", "finetune_bert", "pretrain_gpt"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_to_the_end_and_shows_its_progress_curves_and_report(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    (config,) = (cell for cell in notebook.cells if "config" in cell.metadata.get("tags", ()))
    config.source += SMALL
    # One device, as a user has; conftest's flags are for this process.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    bars = [page for page in shown(notebook, "text/html") if "<progress" in page]
    assert len(bars) == 1 and 'value="8" max="8"' in bars[0] and "loss" in bars[0]
    assert shown(notebook, "image/png") and any("<iframe srcdoc=" in page for page in shown(notebook, "text/html"))
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "report.json").read_text())["step"] in (4, 8)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_the_outputs_of_a_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert not [one for one in outputs(notebook) if one.output_type == "error" or one.get("name") == "stderr"]
    assert shown(notebook, "image/png") and any("<iframe srcdoc=" in page for page in shown(notebook, "text/html"))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom before it is kept"
    assert not re.search(r"(/home/|/root/|/tmp/|/Users/)", path.read_text()), "no places of a machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_leaves_it_unasked_and_no_cell_logs_in_and_uploads(path):
    """The form of a login is not waited for: what needs its token stands in a cell of its own."""
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    drive, login, push = code[-3:]
    assert "drive.mount" in drive and "notebook_login()" in login and "upload_folder" in push
    for source in (drive, login, push):
        exec(source, {"HUB_ID": ""})  # as it is kept it does nothing
