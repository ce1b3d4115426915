"""LoRA and its kin: which layers, how they begin, what trains at which rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxft.peft import lora, targets
from jaxft.peft.lora import Lora
from jaxft.registry import UserError
from tests.peft import made

BERT = made.maker("bert", "sequence")


def layers(net):
    return sorted({path.partition("/adapter/")[0] for path in net.added})


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        ("attention", ["blocks/attn/k", "blocks/attn/out", "blocks/attn/q", "blocks/attn/v"]),
        (r"blocks/attn/(q|v)", ["blocks/attn/q", "blocks/attn/v"]),
        (("blocks/mlp/up", "blocks/attn/q"), ["blocks/attn/q", "blocks/mlp/up"]),
    ],
)
def test_a_target_is_a_kind_or_regexes_of_whole_paths(target, chosen):
    assert layers(BERT(peft=Lora(target=target))) == chosen


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "mixtral"])
def test_all_linear_leaves_heads_and_embeddings_alone(name):
    head = "sequence" if name == "bert" else "seq2seq_lm" if name == "t5" else "causal_lm"
    chosen = layers(made.maker(name, head)(peft=Lora(target="all-linear", rank=2)))
    assert chosen and not [path for path in chosen if path.startswith(("head", "embed"))]


def test_a_target_that_matches_nothing_names_the_layers_that_there_are():
    with pytest.raises(UserError, match=r"peft.target='query' matches no layer.*blocks/attn/q"):
        BERT(peft=Lora(target="query"))
    with pytest.raises(UserError, match="matches no layer"):
        BERT(peft=Lora(target="head/classifier"))  # it trains whole
    for target in (None, 5, (), (1,)):
        with pytest.raises(UserError, match=r"peft.target=.* must be 'attention', 'all-linear', a regex of paths"):
            BERT(peft=Lora(target=target))


def test_a_rank_above_a_dimension_is_refused():
    with pytest.raises(UserError, match=r"peft.rank=40 is above a dimension of blocks/attn/k, which is 32 x 32"):
        BERT(peft=Lora(rank=40))


@pytest.mark.parametrize(
    "option", [dict(rank=0), dict(alpha=0.0), dict(dropout=1.0), dict(init="olora"), dict(b_rate=0.0)]
)
def test_options_that_cannot_be_are_refused(option):
    with pytest.raises(UserError, match=f"peft.{next(iter(option))}="):
        Lora(**option)


def test_a_head_of_classes_trains_whole_and_modules_to_save_beside_it():
    net = BERT(peft=Lora(modules_to_save=("embed/norm",)))
    whole = {path for path in net.abstract if net.trains(path) and "/adapter/" not in path}
    heads = {path for path in net.abstract if path.startswith("head/")}
    assert whole == heads | {"embed/norm/scale", "embed/norm/bias"}
    with pytest.raises(UserError, match=r"peft.modules_to_save: 'embd' matches no module.*embed/norm"):
        BERT(peft=Lora(modules_to_save=("embd",)))


def test_a_head_over_the_vocabulary_stays():
    net = made.maker("gpt2", "causal_lm")(peft=Lora())
    assert all("/adapter/" in path for path in net.abstract if net.trains(path))


def test_rank_stabilised_scaling_divides_by_the_root():
    assert Lora(rank=16, alpha=8.0).scale("any") == 0.5
    assert Lora(rank=16, alpha=8.0, rslora=True).scale("any") == 2.0


def test_lora_plus_gives_b_a_rate_of_its_own():
    method = Lora(b_rate=16.0)
    assert method.rate("blocks/attn/q/adapter/b") == 16.0 and method.rate("blocks/attn/q/adapter/a") == 1.0


def test_pissa_begins_with_the_best_approximation():
    kernel = np.random.default_rng(0).standard_normal((2, 40, 24)).astype(np.float32)
    a, b = lora.principal(jnp.asarray(kernel), 5, 0.5)
    for i in range(2):
        u, s, v = np.linalg.svd(kernel[i])
        best = (u[:, :5] * s[:5]) @ v[:5]
        assert np.abs(0.5 * np.asarray(a[i] @ b[i]) - best).max() < 1e-3


@pytest.mark.parametrize("kind", ["nf4", "bfloat16"])
def test_pissa_begins_as_the_network_whose_kernels_are_in_few_bits(kind):
    net = made.maker("bert", "sequence", frozen_dtype=kind)(peft=Lora(init="pissa"))
    params = made.parameters(net)
    flat = flatten_dict(params, sep="/")
    added = [path for path in flat if "/adapter/" in path]
    assert added and all(flat[path].dtype == jnp.float32 for path in added), "what is taken off has all its bits"
    assert all(flat[path].dtype == net.abstract[path].dtype for path in added)
    plain = made.maker("bert", "sequence", frozen_dtype=kind)(peft=Lora())  # of the same seed, and B is zero
    batch, _ = made.texts(net)
    difference = made.logits(net, params, batch) - made.logits(plain, made.parameters(plain), batch)
    assert np.abs(difference).max() < 1e-5


def test_dora_begins_with_the_lengths_of_the_weights():
    params = flatten_dict(made.parameters(BERT(peft=Lora(dora=True))), sep="/")
    want = np.linalg.norm(np.asarray(params["blocks/attn/q/kernel"]), axis=-2)
    assert np.allclose(params["blocks/attn/q/adapter/length"], want, atol=1e-6)


def test_dropout_acts_on_the_added_path_alone_and_differently_in_each_layer():
    net = BERT(peft=Lora(dropout=0.5))
    quiet = made.parameters(net)
    loud = made.moved(net, quiet, by=0.5)
    batch, _ = made.texts(net)
    cold = jax.jit(lambda params, key: net.forward(params, batch, key))
    drawn = [np.asarray(cold(loud, jax.random.key(seed))) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_layers_inside_a_head_are_no_targets():
    model = BERT().family.Model(BERT().cfg, "sequence", 3, BERT().how)
    assert not [path for path in targets.layers(model) if path.startswith("head/")]
