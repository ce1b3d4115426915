"""BitFit: the biases and a head of classes train, and nothing else."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft import build, exporting, scoring, sharding, state
from jaxft.models import bert, t5
from jaxft.peft.bitfit import BitFit
from jaxft.registry import UserError
from tests import tiny


def network(family, head, method):
    c = tiny.config()
    sections = dict(model=c.model, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return build.network(family, family.TINY, head=head, outputs=3, peft=method, **sections)


def test_biases_and_the_head_train_and_nothing_is_added():
    net = network(bert, "sequence", BitFit())
    trained = {path for path in net.abstract if net.trains(path)}
    assert trained == {path for path in net.abstract if path.endswith("/bias") or path.startswith("head/")}
    assert {"blocks/attn/q/bias", "blocks/mlp/down/bias", "embed/norm/bias"} <= trained
    assert not net.added and not exporting.exchanged(net)


def test_a_step_moves_biases_and_the_head_alone():
    net = network(bert, "sequence", BitFit(modules_to_save=("blocks/mlp/up",)))
    params, _ = build.parameters(net, None, 0, False)
    before = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    plan = state.plan(net, tiny.config(), lambda step: 1.0)
    batch = scoring.to_device(tiny.batch(), sharding.batch_sharding(net.mesh, net.activations))
    after, _ = state.training_step(net, tiny.TASK, plan, tiny.config())(plan.make(params), batch, {})
    now = flatten_dict(state.all_parameters(jax.device_get(after)), sep="/")
    still = {path for path in before if (now[path] == before[path]).all()}
    expected = {path for path in before if not path.endswith("/bias") and not path.startswith("head/")}
    assert still == expected - {"blocks/mlp/up/kernel"}
    assert set(flatten_dict(state.saved(net, after).frozen, sep="/")) == set()


def test_a_model_without_biases_is_refused():
    with pytest.raises(UserError, match="no biases below its head"):
        network(t5, "seq2seq_lm", BitFit())
