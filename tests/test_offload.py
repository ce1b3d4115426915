"""The optimizer's state may live in the host's memory: the run is the same."""

import shutil

import jax
import numpy as np
import pytest

from jaxft import run as runs
from jaxft.config import parse
from jaxft.train import train
from tests import every_task, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(folder of a run, kind of memory -> numbers of its optimizer's state) without and with train.offload."""
    found = {}
    for offload in (False, True):
        folder = tmp_path_factory.mktemp("run")
        raw = every_task.config("cls", folder, train__offload=offload, model__scratch__d_model=64)
        seen = {}

        class Watched(runs.Run):
            def _restore_or_init(self, seen=seen):
                state = super()._restore_or_init()
                for leaf in jax.tree.leaves(state.opt):
                    seen[leaf.sharding.memory_kind] = seen.get(leaf.sharding.memory_kind, 0) + leaf.size
                return state

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jaxft.train.Run", Watched)
            train(raw, parse(raw), folder / "run", (), lambda _: None)
            (folder / "run" / "report.json").unlink()
            last = max(program.steps(folder / "run"))
            shutil.rmtree(folder / "run" / "checkpoints" / str(last))
            train(raw, parse(raw), folder / "run", (), lambda _: None)  # goes on from the checkpoint before
        found[offload] = folder / "run", seen
    return found


def test_what_is_offloaded_lives_with_the_host(ended):
    _, kinds = ended[True]
    assert kinds["pinned_host"] > 3 * kinds["device"], "all but what is small"
    assert "pinned_host" not in ended[False][1]


def test_numbers_are_those_of_a_run_that_keeps_all_on_the_device(ended):
    kept, offloaded = (program.arrays(folder, max(program.steps(folder))) for folder, _ in ended.values())
    assert kept.keys() == offloaded.keys()
    for name in kept:
        np.testing.assert_allclose(offloaded[name], kept[name], rtol=1e-6, atol=1e-7, err_msg=name)
