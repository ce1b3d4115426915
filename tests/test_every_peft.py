"""What holds for every registered method of parameter-efficient fine-tuning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft import adapters, exporting, scoring, sharding, state
from jaxft.network import Network
from jaxft.peft import PEFT, PEFT_TYPES
from jaxft.registry import UserError, call, lookup
from tests import tiny
from tests.peft import made

OPTIONS = {"lora": {"rank": 4}}  # beside those that have defaults
STEPS = 3


def method(name):
    return call(PEFT, {"name": name, **OPTIONS.get(name, {})}, "peft").for_run(total=100)


def network(name, head="sequence", family="bert", **model) -> Network:
    return made.maker(family, head, **model)(peft=method(name))


def trained(net, steps=STEPS):
    """(state before, state after some steps) of tiny batches; `before` is a copy."""
    config = dataclasses.replace(tiny.config(), optim=dict(tiny.config().optim, lr=1e-2))
    plan = state.plan(net, config, lambda step: 1.0)
    step = state.training_step(net, tiny.TASK, plan, config)
    now = plan.make(made.parameters(net))
    before = jax.tree.map(jnp.copy, now)
    for seed in range(steps):
        batch = scoring.to_device(tiny.batch(seed=seed), sharding.batch_sharding(net.mesh, net.activations))
        now, _ = step(now, batch, {})
    return before, now


@pytest.fixture(scope="module", params=sorted(PEFT.keys() - {"full"}))
def run(request):
    net = network(request.param)
    return net, *trained(net)


def test_only_what_trains_moves_and_has_a_place_in_the_optimizer(run):
    net, before, after = run
    mine = flatten_dict(after.params, sep="/")
    assert mine and all(net.trains(path) for path in mine)
    assert not [path for path in flatten_dict(after.frozen, sep="/") if net.trains(path)]
    for old, new in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        assert np.array_equal(old, new)
    largest = max(leaf.size for leaf in jax.tree.leaves(after.opt))
    assert largest <= max(leaf.size for leaf in mine.values()), "a moment of what does not train"
    old = flatten_dict(before.params, sep="/")
    assert [path for path in mine if not np.array_equal(mine[path], old[path])], "nothing moved"


def test_a_checkpoint_holds_what_was_added_and_no_weights_of_the_model(run):
    net, _, after = run
    held = state.saved(net, after)
    paths = set(flatten_dict(held.frozen, sep="/")) | set(flatten_dict(held.params, sep="/"))
    assert set(net.added) <= paths and not [path for path in paths if path not in net.added and not net.trains(path)]
    whole = state.whole(held, state.all_parameters(after))
    assert jax.tree.structure(whole) == jax.tree.structure(after)


def test_scanned_blocks_compute_what_unrolled_ones_do(run):
    net, _, after = run
    batch, _ = made.texts(net)
    name = next(name for name in PEFT if isinstance(net.peft, lookup(PEFT, name, "peft.name")))
    scanned = network(name, scan=True)
    params = state.all_parameters(after)
    assert np.abs(made.logits(net, params, batch) - made.logits(scanned, params, batch)).max() < 1e-5


def test_an_exchanged_adapter_is_read_as_it_was_written(run, tmp_path):
    net, _, after = run
    if not exporting.exchanged(net):
        pytest.skip("its export is the whole model")
    params = state.all_parameters(after)
    made.write_adapter(tmp_path / "adapter", net, params, "some/base")
    again, adapter = adapters.network(made.maker("bert", "sequence"), tmp_path / "adapter")
    read = adapters.applied(again, made.parameters(again), adapter)
    batch, _ = made.texts(net)
    assert np.abs(made.logits(net, params, batch) - made.logits(again, read, batch)).max() < 1e-5


def test_merged_weights_compute_the_same_or_the_method_says_that_there_are_none(run):
    net, _, after = run
    params = state.all_parameters(after)
    try:
        merged = adapters.merged(net, params)
    except UserError as error:
        assert "cannot be merged" in str(error)
        return
    batch, _ = made.texts(net)
    plain = made.maker("bert", "sequence")()
    assert np.abs(made.logits(net, params, batch) - made.logits(plain, merged, batch)).max() < 1e-5


def test_types_of_the_peft_library_are_methods_that_write_them():
    for name, place in PEFT_TYPES.items():
        assert lookup(PEFT_TYPES, name, "peft_type").peft_type == name and place in PEFT.values()


def test_what_a_run_or_a_read_adapter_fills_in_is_no_option():
    for name, own in (("lora", ("ranks", "alphas")), ("adalora", ("total", "read"))):
        for option in own:
            with pytest.raises(UserError, match=f"peft.{option} is not an option here") as caught:
                call(PEFT, {"name": name, option: 1}, "peft")
            assert not {*str(caught.value).partition("options: ")[2].split(", ")} & {*own}
