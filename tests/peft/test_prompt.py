"""Prompt tuning: against `peft`, packed rows, gradients, generation, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft import build, verify
from jaxft.models import bart, bert, gemma2, gpt2, llama, t5, vit
from jaxft.peft.prompt import PATH, Prompt
from jaxft.registry import UserError
from tests import tiny
from tests.peft import made, virtual

METHOD = Prompt(tokens=5)


@pytest.mark.parametrize("family, head", [(bert, "sequence"), (gemma2, "causal_lm"), (t5, "seq2seq_lm")])
def test_peft_computes_the_same_both_ways(tmp_path, family, head):
    pytest.importorskip("peft")
    there, again, off = virtual.exchanged(tmp_path, virtual.maker(family, head), METHOD)
    assert there < 1e-5 and again < 1e-5 and off > 0.1


@pytest.mark.parametrize("family, task", [(llama, "CAUSAL_LM"), (t5, "SEQ_2_SEQ_LM")])
def test_adapters_that_peft_makes_are_read(tmp_path, family, task):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)
    head = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm"}[task]
    assert virtual.born_in_peft(tmp_path, virtual.maker(family, head), config) < 1e-5


@pytest.mark.parametrize("family", [bert, llama])
def test_a_packed_text_is_as_if_it_stood_alone(family):
    net = virtual.maker(family, "sequence")(peft=METHOD)
    params, packed = virtual.randomised(net), tiny.batch(rows=4)
    forward = jax.jit(net.forward)
    found = np.asarray(forward(params, packed))[packed["weight"] > 0]
    order = packed["example"][packed["weight"] > 0]
    alone = np.asarray(forward(params, tiny.unpacked(packed)))[order, 0]
    np.testing.assert_allclose(found, alone, atol=2e-5)


def test_packed_sources_are_as_if_they_stood_alone():
    net = virtual.maker(t5, "seq2seq_lm")(peft=METHOD)
    params, packed = virtual.randomised(net), tiny.batch(rows=3)

    def pairs(batch):
        source = {name: batch[name] for name in ("ids", "segment", "position", "example")}
        return source | {f"target_{name}": batch[name] for name in ("ids", "segment", "position")}

    forward = jax.jit(net.forward)
    found = np.asarray(forward(params, pairs(packed)))[packed["segment"] > 0]
    alone = tiny.unpacked(packed)
    by_example = np.asarray(forward(params, pairs(alone)))
    rows, places = np.nonzero(packed["segment"])
    example = packed["example"][rows, packed["segment"][rows, places] - 1]
    np.testing.assert_allclose(found, by_example[example, packed["position"][rows, places]], atol=5e-5)


def test_chosen_tokens_are_those_of_the_texts():
    net = virtual.maker(llama, "causal_lm")(peft=METHOD)
    params, batch = virtual.randomised(net), tiny.batch(rows=2)
    at_BS = np.array([[1, 4, 0], [2, 3, 5]], np.int32)
    whole, some = (jax.jit(net.forward)(params, given) for given in (batch, batch | {"at": at_BS}))
    assert whole.shape[:2] == (2, tiny.LENGTH)
    np.testing.assert_allclose(some, np.take_along_axis(np.asarray(whole), at_BS[:, :, None], 1), atol=1e-5)


def test_several_devices_and_scan_compute_the_same():
    one = virtual.maker(bert, "sequence")(peft=METHOD)
    many = virtual.maker(bert, "sequence", on=tiny.mesh(8, data=4, tensor=2), scan=not one.how.scan)(peft=METHOD)
    params, batch = virtual.randomised(one), tiny.batch()
    expected = jax.jit(one.forward)(params, batch)
    placed = jax.tree.map(lambda x, like: jax.device_put(np.asarray(x), like.sharding), params, many.tree)
    np.testing.assert_allclose(jax.jit(many.forward)(placed, batch), expected, atol=1e-5)


def test_gradients_reach_the_vectors_alone():
    net = virtual.maker(llama, "causal_lm")(peft=METHOD)
    params, batch = virtual.randomised(net), tiny.batch(rows=2)
    assert [path for path in net.abstract if net.trains(path)] == [PATH]
    grads = flatten_dict(jax.jit(jax.grad(lambda p: jnp.square(net.forward(p, batch)).mean()))(params), sep="/")
    assert np.abs(grads[PATH]).max(axis=1).min() > 0


def test_vectors_begin_as_words():
    net = virtual.maker(bert, "sequence")(peft=METHOD)
    params, _ = build.parameters(net, None, 0, False)
    word = params["embed"]["word"]
    table, vectors = np.asarray(word["table"]), np.asarray(word["adapter"]["vectors"])
    assert all((table[: bert.TINY.vocab] == one).all(1).any() for one in vectors)
    assert len(np.unique(vectors, axis=0)) > 1
    drawn, _ = build.parameters(virtual.maker(bert, "sequence")(peft=Prompt(tokens=400, init="normal")), None, 0, False)
    assert abs(np.asarray(drawn["embed"]["word"]["adapter"]["vectors"]).std() - 1) < 0.05


def test_a_text_that_is_written_begins_with_the_vectors():
    net = virtual.maker(gpt2, "causal_lm")(peft=METHOD)
    found, whole = virtual.written_again(net, virtual.randomised(net))
    np.testing.assert_allclose(found, whole, atol=2e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers about itself
def test_an_export_is_verified_by_the_logits_of_the_text(tmp_path):
    pytest.importorskip("peft")
    net = made.maker("llama", "causal_lm")(peft=METHOD)
    params = made.moved(net, made.parameters(net))
    made.write_base(tmp_path / "base", net, params)
    made.write_adapter(tmp_path / "adapter", net, params, tmp_path / "base")
    difference, reader = verify.largest_difference(tmp_path / "adapter", net, params, "float32")
    assert difference <= 1e-5 and reader == "transformers"


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"peft.tokens=0 must be 1 or more"):
        Prompt(tokens=0)
    with pytest.raises(UserError, match=r"peft.init='text' must be one of: words, normal"):
        Prompt(init="text")
    with pytest.raises(UserError, match="begins with images"):
        virtual.maker(vit, "image")(peft=METHOD)
    with pytest.raises(UserError, match="needs a head that writes"):
        virtual.maker(bart, "sequence")(peft=METHOD)
    net = virtual.maker(bert, "sequence", dataclasses.replace(bert.TINY, positions=20))(peft=METHOD)
    with pytest.raises(UserError, match=r"input.length=16 and peft.tokens=5 exceed the 20 positions.*to 15 or less"):
        jax.eval_shape(net.forward, net.tree, tiny.batch(rows=2))
