import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import bert
from jaxft.step import all_finite
from tests import tiny

STILL = dataclasses.replace(bert.TINY, dropout=0.0, attention_dropout=0.0)
TOLERANCE = 1e-5  # float32; never loosened


@pytest.fixture(scope="module")
def batches():
    return [tiny.batch(seed=seed) for seed in range(10)]


@pytest.fixture(scope="module")
def single_device_losses(batches):
    return tiny.Trainer(tiny.mesh(devices=1)).run(batches)


@pytest.mark.parametrize(
    "sizes", [dict(data=8), dict(fsdp=8), dict(data=2, tensor=4), dict(data=2, fsdp=2, tensor=2)], ids=str
)
def test_ten_sharded_steps_have_the_single_device_losses(batches, single_device_losses, sizes):
    """Dropout is on: its masks must not depend on the mesh either."""
    trainer = tiny.Trainer(tiny.mesh(**sizes))
    np.testing.assert_allclose(trainer.run(batches), single_device_losses, rtol=0, atol=TOLERANCE)
    kernel = trainer.state.params["blocks"]["mlp"]["up"]["kernel"]
    moment = trainer.state.opt.mu["blocks"]["mlp"]["up"]["kernel"]
    assert moment.sharding == kernel.sharding, "moments live where parameters do"
    shards = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * shards == kernel.size


def test_giving_the_old_state_away_does_not_change_a_bit(batches):
    """The program donates it, the tests of this file do not."""
    kept, given = (tiny.Trainer(tiny.mesh(devices=1), ema=0.9) for _ in range(2))
    given.step = jax.jit(given.step, donate_argnums=0)
    first = given.state
    assert kept.run(batches[:3]) == given.run(batches[:3])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.opt))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (kept.state, given.state)))


def test_training_learns(single_device_losses, batches):
    trainer = tiny.Trainer(tiny.mesh(devices=1))
    losses = trainer.run([batches[0]] * 80)
    assert losses[-1] < 0.2 * losses[0]


def test_packed_rows_have_the_loss_and_gradients_of_unpacked_ones(batches):
    trainer = tiny.Trainer(tiny.mesh(devices=1), cfg=STILL)

    def loss_and_grads(batch):
        def total(params):
            return trainer.loss(params, {}, batch, None)["loss"][0]

        return jax.jit(jax.value_and_grad(total))(trainer.state.params)

    packed_loss, packed = loss_and_grads(batches[0])
    loss, apart = loss_and_grads(tiny.unpacked(batches[0]))
    np.testing.assert_allclose(packed_loss, loss, rtol=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), packed, apart)


def test_one_segment_never_changes_another_bitwise(batches):
    trainer = tiny.Trainer(tiny.mesh(devices=1), cfg=STILL)
    packed = batches[0]
    logits = jax.jit(lambda b: trainer.net.forward(trainer.state.params, b))
    row = int(np.argmax(packed["weight"].sum(1)))
    changed = {name: array.copy() for name, array in packed.items()}
    changed["ids"][row, packed["segment"][row] == 1] = 7
    before, after = np.array(logits(packed)), np.array(logits(changed))
    assert not np.array_equal(before[row, 0], after[row, 0])
    before[row, 0] = after[row, 0] = 0
    np.testing.assert_array_equal(before, after)


def test_accumulated_micro_batches_equal_the_large_batch(batches):
    large = tiny.Trainer(tiny.mesh(devices=1), cfg=STILL).run(batches)
    small = tiny.Trainer(tiny.mesh(data=2, devices=2), cfg=STILL, accumulate=4).run(batches)
    np.testing.assert_allclose(small, large, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_left_out_and_counted(batches, poison):
    trainer = tiny.Trainer(tiny.mesh(devices=1), ema=0.9, poisoned=True)
    batches = [batch | {"poison": np.ones(8, np.float32)} for batch in batches]
    trainer.run(batches[:2])
    before = jax.device_get(trainer.state)
    bad = batches[2] | {"poison": np.full(8, poison, np.float32)}
    assert not np.isfinite(trainer.run([bad, bad])).any(), "the log shows what happened"
    after = jax.device_get(trainer.state)
    for name in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (int(after.step), int(after.skipped), int(after.bad_streak)) == (4, 2, 2)
    trainer.run(batches[3:4])
    assert int(trainer.state.bad_streak) == 0
    assert not np.array_equal(
        before.params["head"]["classifier"]["bias"], trainer.state.params["head"]["classifier"]["bias"]
    )


def test_a_batch_without_examples_changes_nothing_but_decay(batches):
    """All labels masked: loss 0, gradient 0, no NaN."""
    trainer = tiny.Trainer(tiny.mesh(devices=1))
    empty = dict(batches[0], weight=np.zeros_like(batches[0]["weight"]))
    _, sums = trainer.step(trainer.state, empty)
    assert float(sums["loss"][0]) == 0 and float(sums["grad_norm"][0]) == 0 and float(sums["bad_streak"][0]) == 0


def test_frozen_parameters_keep_their_values_and_have_no_moments(batches):
    trainer = tiny.Trainer(tiny.mesh(devices=1), freeze=("embed/.*",))
    before = jax.device_get(trainer.state.frozen)
    trainer.run(batches[:2])
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(trainer.state.frozen))
    assert "embed" not in trainer.state.params
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trainer.state.opt)]
    assert paths and not any("embed" in path for path in paths)


def test_the_moving_average_follows_the_parameters(batches):
    trainer = tiny.Trainer(tiny.mesh(devices=1), ema=0.5)
    first = jax.device_get(trainer.state.params)
    trainer.run(batches[:1])
    expected = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, first, jax.device_get(trainer.state.params))
    jax.tree.map(lambda e, a: np.testing.assert_allclose(e, a, atol=1e-7), expected, jax.device_get(trainer.state.ema))


def test_clipping_bounds_the_gradient_norm(batches):
    """The reported norm is the unclipped one; the moments see the clipped gradient."""
    free, clipped = (tiny.Trainer(tiny.mesh(devices=1), cfg=STILL, clip=clip) for clip in (0.0, 1e-3))
    _, free_sums = free.step(free.state, batches[0])
    state, sums = clipped.step(clipped.state, batches[0])
    np.testing.assert_allclose(float(sums["grad_norm"][0]), float(free_sums["grad_norm"][0]), rtol=1e-6)
    moments = jax.tree.leaves(state.opt)
    norm = max(float(jnp.abs(m).max()) for m in moments if m.ndim)
    assert norm <= 1e-3


def test_scan_and_unrolled_blocks_agree(batches):
    """Without dropout, whose masks in the last block have another shape when that is unrolled."""
    on = tiny.mesh(devices=1)
    params = tiny.Trainer(on).state.params
    outs = [
        np.asarray(jax.jit(lambda p, b, net=net: net.forward(p, b))(params, batches[0]))
        for net in (tiny.network(on), tiny.network(on, scan=True), tiny.network(on, scan=True, remat="full"))
    ]
    for other in outs[1:]:
        np.testing.assert_allclose(other, outs[0], atol=TOLERANCE)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_activations_gives_the_same_gradients(batches, remat):
    on = tiny.mesh(devices=1)
    trainer = tiny.Trainer(on)

    def grads(net):
        def total(params):
            return tiny.TASK.loss(net.forward(params, batches[0], jax.random.key(1)), batches[0])["loss"][0]

        return jax.jit(jax.grad(total))(trainer.state.params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE),
        grads(tiny.network(on)),
        grads(tiny.network(on, remat=remat)),
    )


def test_bfloat16_stays_close_to_float32(batches):
    on = tiny.mesh(devices=1)
    params = tiny.Trainer(on).state.params
    exact, rough = (
        np.asarray(jax.jit(lambda p, b, net=net: net.forward(p, b))(params, batches[0]))
        for net in (tiny.network(on), tiny.network(on, dtype="bfloat16"))
    )
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(exact, rough, atol=2e-2)


def test_parameters_that_are_not_finite_are_noticed():
    good = {"a": jnp.ones(3), "b": {"c": jnp.zeros((2, 2))}}
    assert all_finite(good)
    assert not all_finite(good | {"a": jnp.array([1.0, np.nan, 0.0])}) and not all_finite({"a": jnp.array([np.inf])})
