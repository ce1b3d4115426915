"""Export: any checkpoint of any run, and nothing takes the place of a good export before it is known to be good."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import program
from tests.verbs_run import here

pytestmark = pytest.mark.slow


def export(run, out, *flags):
    here("export", f"--run={run}", f"--out={out}", *flags)


def test_a_run_exports_whatever_its_schedule_asks_of_the_warm_up(tmp_path):
    """Timescale 0 stands for the warm-up's length, which an export does not know."""
    schedule = {"name": "inverse_sqrt", "warmup": "2 steps", "timescale": 0, "floor": 0.0}
    done = program.run(tmp_path / "run", schedule=schedule)
    assert done.code == 0, done.err
    export(tmp_path / "run", tmp_path / "out", f"--step={program.STEPS}")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    state = program.arrays(tmp_path / "run", program.STEPS)
    np.testing.assert_array_equal(exported["classifier.bias"], state["params/head/classifier/bias"])
