"""What holds for the loss of every registered task, on batches of its own: sums over rows, padding is nothing."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from jaxft import runfolder, scoring, sharding, state
from jaxft.config import parse
from jaxft.data.pipeline import WHOLE
from jaxft.layers.loss import combined
from jaxft.optim import masks
from jaxft.run import Run
from jaxft.signals import StopSignals
from jaxft.tasks import TASKS
from jaxft.train import train
from tests import every_task, tiny

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # of sums and gradients in float32; never loosened
# What depends on the whole batch: in retrieval a query's choice are the passages of all rows.
OF_THE_BATCH = {"retrieval": {"loss", "accuracy"}}


class Built(Run):
    """A run that compiles no step."""

    def _compile(self) -> Any:
        return None, None


@dataclass(frozen=True)
class Case:
    """batch: all rows of the train split, then an empty one. learn: batch -> (sums, gradient). blank: made-up rows."""

    name: str
    batch: dict[str, np.ndarray]
    learn: Any
    blank: dict[str, np.ndarray]

    def only(self, keep_B: np.ndarray) -> dict[str, np.ndarray]:
        """The batch with empty rows in place of the others."""
        return {
            key: np.where(keep_B.reshape(-1, *[1] * (array.ndim - 1)), array, array[-1:])
            for key, array in self.batch.items()
        }


@pytest.fixture(scope="module", params=TASKS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    raw = every_task.config(request.param, folder)
    silent = {key: 0.0 for key in raw["model"]["scratch"] if "dropout" in key}
    raw["model"]["scratch"].update(silent)
    if request.param == "distill":
        raw["task"]["teacher"] = str(teacher(folder))
    where = runfolder.RunFolder(folder / "run")
    where.create()
    one = tiny.mesh(devices=1)  # less to compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda sizes: one)
        run = Built(parse(raw), where, (), lambda text: None, StopSignals())
    batch = next(iter(run.inputs.eval_batches("train", run.inputs.rows("train") + 1, WHOLE)))
    shares = getattr(run.task, "shares", {})
    weights = (
        run.task.weights(scoring.to_device(batch, run.batch_sharding)) if shares else {}
    )  # of the whole, as in a step

    @jax.jit
    def learn(params, batch):
        def loss(params):
            with run.net.tracing():
                logits, _ = state._forward(run.net, run.task, params, run.given, batch, jax.random.key(0))
                sums = run.task.loss(logits, batch)
                sums |= {"loss": combined(sums, shares, weights)} if shares else {}
                return sums["loss"][0], sums

        gradient, sums = jax.grad(loss, has_aux=True)(params)
        return sums, gradient

    params = masks.join(run.state.params, run.state.frozen)
    yield Case(
        request.param,
        batch,
        lambda batch: jax.device_get(learn(params, scoring.to_device(batch, run.batch_sharding))),
        run.reader.blank(run.config, run.net.cfg, run.task),
    )
    run.checkpoints.close()


def teacher(folder):
    raw = every_task.config("cls", folder, train__duration="2 steps")
    train(raw, parse(raw), folder / "teacher", (), lambda text: None)
    return folder / "teacher" / "hf"


# What only the data tell: how many choices there are, and how much room spans of short texts take.
ASSUMED = ("multiple_choice", "span_corruption")


def test_a_batch_without_data_is_laid_out_as_one_with_them(case):
    assert case.blank.keys() == case.batch.keys()
    for key, array in case.batch.items():
        made = case.blank[key]
        assert made.dtype == array.dtype and made.ndim == array.ndim and len(made) == 1, key
        assert made.shape[1:] == array.shape[1:] or case.name in ASSUMED, key


def test_every_task_has_a_config_here():
    assert every_task.CASES.keys() == TASKS.keys()


def test_sums_and_gradients_are_finite_and_those_of_the_rows_together(case):
    keep_B = np.arange(len(case.batch["example"])) % 2 == 0
    whole, *parts = (case.learn(batch) for batch in (case.batch, case.only(keep_B), case.only(~keep_B)))
    for each in (whole, *parts):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(each))
        assert each[0]["loss"][1] > 0, "each has something to learn from"
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1])) > 0
    apart = OF_THE_BATCH.get(case.name, set())
    compared = [
        ({k: v for k, v in sums.items() if k not in apart}, () if apart else grads) for sums, grads in (whole, *parts)
    ]
    jax.tree.map(lambda x, a, b: np.testing.assert_allclose(x, a + b, **TOLERANCE), *compared)


def test_empty_rows_count_for_nothing(case):
    sums, gradient = case.learn(case.only(np.zeros(len(case.batch["example"]), bool)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((sums, gradient))), sums


def test_what_stands_in_empty_places_of_rows_changes_nothing(case):
    rng, dirty = np.random.default_rng(0), dict(case.batch)
    for ids, segment in (("ids", "segment"), ("target_ids", "target_segment"), ("original", "segment")):
        if ids in dirty:
            junk = rng.integers(1, 200, dirty[ids].shape).astype(dirty[ids].dtype)
            dirty[ids] = np.where(dirty[segment] == 0, junk, dirty[ids])
    if "pixels" in dirty:
        dirty["pixels"] = np.where(dirty["example"].reshape(-1, 1, 1, 1) < 0, 200, dirty["pixels"])
    assert any((dirty[name] != case.batch[name]).any() for name in dirty), "there are empty places"
    jax.tree.map(
        lambda clean, other: np.testing.assert_allclose(other, clean, **TOLERANCE),
        case.learn(case.batch),
        case.learn(dirty),
    )
