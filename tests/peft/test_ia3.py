"""(IA)^3: which layers it scales, what they compute then, and what `peft` makes of its folders."""

import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import adapters, build, exporting, verify
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.models import bert, gpt2, mixtral, phi3
from jaxft.peft.ia3 import Ia3
from jaxft.registry import UserError
from tests import tiny


@pytest.fixture(scope="module")
def on():
    return tiny.mesh(devices=1)


def maker(on, family, head, outputs=3):
    c = tiny.config()
    sections = dict(model=c.model, rules=c.sharding, mesh=on)
    return functools.partial(build.network, family, family.TINY, head=head, outputs=outputs, **sections)


def moved(params):
    rng, flat = np.random.default_rng(0), flatten_dict(params, sep="/")
    for path in sorted(path for path in flat if "/adapter/" in path or path.endswith("/bias")):
        flat[path] = flat[path] + 0.1 * rng.standard_normal(flat[path].shape).astype(np.float32)
    return unflatten_dict(flat, sep="/")


def bare(params):
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: leaf for path, leaf in flat.items() if "/adapter/" not in path}, sep="/")


def test_keys_and_values_and_the_last_layer_of_an_mlp_are_scaled(on):
    net = maker(on, bert, "sequence")(peft=Ia3())
    layers, wide = bert.TINY.layers, bert.TINY.d_ff
    assert {path: net.abstract[path].shape for path in net.added} == {
        "blocks/attn/k/adapter/scale": (layers, bert.TINY.d_model),
        "blocks/attn/v/adapter/scale": (layers, bert.TINY.d_model),
        "blocks/mlp/down/adapter/into": (layers, wide),
    }


def test_experts_have_no_layer_to_scale(on):
    net = maker(on, mixtral, "causal_lm")(peft=Ia3())
    assert net.added == ["blocks/attn/k/adapter/scale", "blocks/attn/v/adapter/scale"]


def test_new_vectors_change_no_output(on):
    make = maker(on, bert, "sequence")
    net = make(peft=Ia3(target="all-linear", feedforward=()))
    params, _ = build.parameters(net, None, 0, False)
    batch = tiny.batch()
    np.testing.assert_array_equal(jax.jit(net.forward)(params, batch), jax.jit(make().forward)(bare(params), batch))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(target="attention", feedforward=("blocks/attn/k",)), "both name blocks/attn/k"),
        (dict(target=(), feedforward=()), "name no layer"),
        (dict(feedforward="blocks/mlp/downn"), "peft.feedforward='blocks/mlp/downn' matches no layer"),
    ],
)
def test_layers_that_cannot_be_scaled_are_refused(on, options, said):
    with pytest.raises(UserError, match=said):
        maker(on, bert, "sequence")(peft=Ia3(**options))


def test_inputs_of_layers_that_are_one_there_have_one_vector(on, tmp_path):
    net = maker(on, phi3, "causal_lm")(peft=Ia3(feedforward=".*/(gate|up)"))
    params, _ = build.parameters(net, None, 0, False)
    write = functools.partial(exporting.write, base="x", task={}, beside=lambda path: None, card="")
    write(tmp_path / "equal", net, params)
    with pytest.raises(UserError, match="are one layer in the format of peft"):
        write(tmp_path / "moved", net, moved(params))


def test_a_vector_of_another_size_is_refused(on, tmp_path):
    make = maker(on, bert, "sequence")
    net = make(peft=Ia3(target="attention"))
    params, _ = build.parameters(net, None, 0, False)
    exporting.write(tmp_path, net, params, base="x", task={}, beside=lambda path: None, card="")
    other = functools.partial(make.func, bert, bert.Config(**{**vars(bert.TINY), "d_ff": 24}), **make.keywords)
    with pytest.raises(UserError, match=r"is an adapter of another model: .*ia3_l"):
        adapters.read(tmp_path, other())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("family", "method"),
    [(bert, Ia3()), (gpt2, Ia3()), (bert, Ia3(target="attention", feedforward=()))],
    ids=["bert", "gpt2", "bert-outputs"],
)
def test_peft_computes_the_same_and_what_it_saves_is_read(family, method, on, tmp_path):
    """GPT-2 has three layers in one there, with vectors of ones for its queries; BERT's biases are scaled as well."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    head = "causal_lm" if family is gpt2 else "vectors"
    make = maker(on, family, head)
    plain, net = make(), make(peft=method)
    params, _ = build.parameters(net, None, 0, False)
    params = moved(params)
    base, given = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    save.save(base, bare(params), plain.table, dtype="float32", shapes=plain.stored)
    save.save_json(base, "config.json", hf_folder.config_of(plain, {}, "float32"))
    exporting.write(given, net, params, base=str(base), task={}, beside=lambda path: None, card="")
    batch, inputs = verify._texts(net)
    ours, seen = verify._ours(net, params, batch), batch["segment"] > 0
    loaded = getattr(transformers, family.HF_ARCHITECTURES[head]).from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(loaded, given).eval()
    with torch.no_grad():
        out = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    logits = (out.logits if head == "causal_lm" else out.last_hidden_state).numpy()
    np.testing.assert_allclose(logits[seen], ours[seen], atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    for folder in (given, tmp_path / "again"):
        again, adapter = adapters.network(make, folder)
        start, _ = build.parameters(again, base, 0, False)
        np.testing.assert_array_equal(verify._ours(again, adapters.applied(again, start, adapter), batch), ours)
    np.testing.assert_allclose(verify._ours(plain, adapters.merged(net, params), batch)[seen], ours[seen], atol=1e-5)


def test_a_name_that_ends_as_another_does_is_written_whole():
    """peft takes "x" of feedforward_modules for every name that ends so, "ax" among them."""
    from jaxft.peft.exchange import Module, Part

    def module(name):
        return Module({(): f"block.{name}"}, (Part(name, 0, 2),), 3, 2, transposed=False)

    added = {"ax/adapter/scale": np.ones(2, np.float32), "x/adapter/into": np.ones(3, np.float32)}
    fields, tensors = Ia3().to_hub([module("ax"), module("x")], added, None)
    assert fields["feedforward_modules"] == ["block.x"] and set(fields["target_modules"]) == {"block.ax", "block.x"}
    assert json.loads(json.dumps(fields)) == fields
    assert {name: array.shape for name, array in tensors.items()} == {
        "base_model.model.block.ax.ia3_l": (2, 1),
        "base_model.model.block.x.ia3_l": (1, 3),
    }
