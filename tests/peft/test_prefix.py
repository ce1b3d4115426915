"""Prefix tuning: against `peft`, packed rows, gradients, generation, and what is refused."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft.layers.attention import Where, dense
from jaxft.layers.kernels import prefixed
from jaxft.models import bert, deberta_v2, llama, mistral, modernbert, t5, vit
from jaxft.peft.prefix import Prefix
from jaxft.registry import UserError
from tests import tiny
from tests.peft import virtual

METHOD = Prefix(tokens=5)


@pytest.mark.parametrize("family, head", [(mistral, "causal_lm"), (t5, "seq2seq_lm")])
def test_peft_computes_the_same_both_ways(tmp_path, family, head):
    pytest.importorskip("peft")
    there, again, off = virtual.exchanged(tmp_path, virtual.maker(family, head), METHOD)
    assert there < 1e-5 and again < 1e-6 and off > 0.1


@pytest.mark.parametrize("family, task", [(llama, "CAUSAL_LM"), (t5, "SEQ_2_SEQ_LM")])
def test_adapters_that_peft_makes_are_read(tmp_path, family, task):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4)
    if family is t5:  # heads of 6 do not share out its 16 dimensions; and of 4 pairs the first is that of two layers
        config = dataclasses.replace(config, token_dim=24, num_attention_heads=4, num_layers=4)
    head = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm"}[task]
    assert virtual.born_in_peft(tmp_path, virtual.maker(family, head), config) < 1e-5


def test_bert_reads_the_prefix_as_transformers_does_from_a_cache(tmp_path):
    """peft 0.21 does not know what transformers 5 calls the cache of an encoder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxft import verify

    make = virtual.maker(bert, "vectors")
    net = make(peft=METHOD)
    params = virtual.randomised(net)
    base, _ = virtual.saved_base(tmp_path / "base", make, params)
    batch, given = verify._texts(net)
    attn = params["blocks"]["attn"]["adapter"]

    def heads(x_TF):
        x_THK = torch.from_numpy(np.array(x_TF)).reshape(METHOD.tokens, bert.TINY.heads, -1)
        return x_THK.transpose(0, 1)[None].repeat(verify.ROWS, 1, 1, 1)

    pairs = [tuple(heads(attn[name][layer]) for name in "kv") for layer in range(bert.TINY.layers)]
    model = transformers.BertModel.from_pretrained(str(base), attn_implementation="eager").eval()
    given = {name: torch.from_numpy(array) for name, array in given.items()}
    mask = torch.cat([torch.ones(verify.ROWS, METHOD.tokens, dtype=torch.int64), given.pop("attention_mask")], 1)
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before 5.24
    with torch.no_grad():
        out = model(**given, attention_mask=mask, **{cache: transformers.DynamicCache(pairs)}).last_hidden_state
    difference = np.abs(out.numpy() - verify._ours(net, params, batch))
    assert difference[batch["segment"] > 0].max() < 1e-5


@pytest.mark.parametrize(
    "family, cfg, head",
    [
        (mistral, dataclasses.replace(mistral.TINY, window=4), "sequence"),
        (modernbert, modernbert.TINY, "sequence"),
    ],
)
def test_a_packed_text_is_as_if_it_stood_alone(family, cfg, head):
    net = virtual.maker(family, head, cfg)(peft=METHOD)
    params, packed = virtual.randomised(net), tiny.batch(rows=4)
    forward = jax.jit(net.forward)
    alone = tiny.unpacked(packed)
    found = np.asarray(forward(params, packed))[packed["weight"] > 0]
    order = packed["example"][packed["weight"] > 0]
    np.testing.assert_allclose(found, np.asarray(forward(params, alone))[order, 0], atol=2e-5)


def test_several_devices_and_scan_compute_the_same():
    one = virtual.maker(bert, "sequence")(peft=METHOD)
    many = virtual.maker(bert, "sequence", on=tiny.mesh(8, data=4, tensor=2), scan=not one.how.scan)(peft=METHOD)
    params, batch = virtual.randomised(one), tiny.batch()
    expected = jax.jit(one.forward)(params, batch)
    placed = jax.tree.map(lambda x, like: jax.device_put(np.asarray(x), like.sharding), params, many.tree)
    np.testing.assert_allclose(jax.jit(many.forward)(placed, batch), expected, atol=1e-5)


@pytest.mark.parametrize("block", [4, 64])
def test_values_and_gradients_are_those_of_one_softmax(block):
    rng = np.random.default_rng(0)
    B, L, P, H, G, K = 2, 11, 3, 4, 2, 6
    q, k, v, pk, pv = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((B, L, H, K), (B, L, G, K), (B, L, G, K), (B, P, G, K), (B, P, G, K))
    )
    bias, prefix_bias = (jnp.asarray(rng.standard_normal((1, H, L, M)), jnp.float32) for M in (L, P))
    segment_BL = jnp.asarray([[1] * 5 + [2] * 6, [1] * 9 + [0] * 2])
    where, ones = Where.within(segment_BL, causal=True), jnp.ones_like(segment_BL)
    prefix = Where(ones, ones[:, :P], P * ones)

    class Both(Where):
        def mask_BLM(self):
            return jnp.concatenate([prefix.mask_BLM(), where.mask_BLM()], 2)

    both = Both(segment_BL, jnp.zeros((B, P + L), jnp.int32))

    def ours(q, k, v, pk, pv, bias, prefix_bias):
        row, before = (k, v, where, bias), (pk, pv, prefix, prefix_bias)
        return prefixed.attend(q, row, before, softcap=2.0, drop=0.0, key=None, block=block)

    def plain(q, k, v, pk, pv, bias, prefix_bias):
        k, v = jnp.concatenate([pk, k], 1), jnp.concatenate([pv, v], 1)
        return dense(q, k, v, both, softcap=2.0, bias_BHLM=jnp.concatenate([prefix_bias, bias], 3))

    given = (q, k, v, pk, pv, bias, prefix_bias)
    weight = jnp.asarray(rng.standard_normal((B, L, H, K)), jnp.float32)
    weight *= (segment_BL > 0)[:, :, None, None]
    run = lambda f: jax.jit(jax.value_and_grad(lambda *x: (f(*x) * weight).sum(), argnums=range(7)))  # noqa: E731
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(ours)(*given), run(plain)(*given))


def test_gradients_reach_the_prefix_alone():
    net = virtual.maker(llama, "causal_lm")(peft=METHOD)
    params, batch = virtual.randomised(net), tiny.batch(rows=2)
    trained = {path for path in net.abstract if net.trains(path)}
    assert trained == {"blocks/attn/adapter/k", "blocks/attn/adapter/v"}
    grads = flatten_dict(jax.jit(jax.grad(lambda p: jnp.square(net.forward(p, batch)).mean()))(params), sep="/")
    assert all(np.abs(grads[path]).max(axis=(1, 2)).min() > 0 for path in trained)


def test_a_text_that_is_written_sees_the_prefix():
    net = virtual.maker(mistral, "causal_lm", dataclasses.replace(mistral.TINY, window=6))(peft=METHOD)
    found, whole = virtual.written_again(net, virtual.randomised(net))
    np.testing.assert_allclose(found, whole, atol=2e-5)


def test_a_target_that_is_written_sees_the_prefix():
    net = virtual.maker(t5, "seq2seq_lm")(peft=METHOD)
    params, packed = virtual.randomised(net), tiny.batch(rows=2)
    source = {name: packed[name] * (packed["segment"] == 1) for name in ("ids", "segment", "position")}
    ids_BL = np.random.default_rng(2).integers(2, 99, (2, 5)).astype(np.int32)
    place_BL = np.broadcast_to(np.arange(5, dtype=np.int32), (2, 5))
    target = {"target_ids": ids_BL, "target_segment": np.ones_like(ids_BL), "target_position": place_BL}
    whole = jax.jit(net.forward)(params, source | target)
    apart = net.apart(params, keep=True)
    found, cache = jax.jit(net.start, static_argnums=2)(apart, source | {k: x[:, :1] for k, x in target.items()}, 4)
    rows = [found]
    for i in range(1, 5):
        one = {name: target[f"target_{name}"][:, i : i + 1] for name in ("ids", "segment", "position")}
        found, cache = jax.jit(net.next)(apart, one, cache)
        rows.append(found)
    np.testing.assert_allclose(np.stack(rows, 1), whole, atol=5e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"peft.tokens=0 must be 1 or more"):
        Prefix(tokens=0)
    with pytest.raises(UserError, match=r"peft.init='ones' must be one of: normal, zeros"):
        Prefix(init="ones")
    with pytest.raises(UserError, match="scores distances between tokens"):
        virtual.maker(deberta_v2, "sequence")(peft=METHOD)
    with pytest.raises(UserError, match="reads images"):
        virtual.maker(vit, "image")(peft=METHOD)
    with pytest.raises(UserError, match="with this head the model has none"):
        virtual.maker(t5, "token")(peft=METHOD)
    net = virtual.maker(bert, "sequence", dataclasses.replace(bert.TINY, positions=20))(peft=METHOD)
    with pytest.raises(UserError, match=r"input.length=16 and peft.tokens=5 exceed the 20 positions.*to 15 or less"):
        jax.eval_shape(net.forward, net.tree, tiny.batch(rows=2))


def test_rows_that_devices_cut_are_refused():
    net = virtual.maker(bert, "sequence", on=tiny.mesh(4, context=4))(peft=METHOD)
    with pytest.raises(UserError, match=r"needs whole rows.*mesh.context=1"):
        jax.eval_shape(net.forward, net.tree, tiny.batch(rows=4))
