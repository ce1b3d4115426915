"""Kernels of few bits: the nearest codes, products and gradients of what they stand for, in stacks and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import build
from jaxft.layers import frozen
from jaxft.layers.dense import affine, frozen_affine
from jaxft.layers.frozen import BLOCK, NF4, Quantized
from jaxft.peft.lora import Lora
from jaxft.registry import UserError
from tests import tiny
from tests.peft import made

KINDS = sorted(frozen.KINDS)


def kernel(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_nf4_takes_the_nearest_of_its_sixteen_numbers():
    k = kernel(2 * BLOCK, 5)
    found = np.asarray(Quantized(**frozen.quantize(k, "nf4")).astype(jnp.float32))
    blocks = np.asarray(k).reshape(2, BLOCK, 5)
    scale = np.abs(blocks).max(1, keepdims=True)
    nearest = NF4[np.abs((blocks / scale)[..., None] - NF4).argmin(-1)] * scale
    assert np.allclose(found, nearest.reshape(2 * BLOCK, 5), atol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.5), ("nf4", 4.5)])
def test_a_number_takes_so_many_bits(kind, bits):
    stored = frozen.quantize(kernel(128, 96), kind)
    assert sum(array.nbytes for array in stored.values()) * 8 / (128 * 96) == bits


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.01), ("nf4", 0.1)])
def test_the_error_is_that_of_the_paper(kind, limit):
    k = kernel(256, 64)
    found = Quantized(**frozen.quantize(k, kind)).astype(jnp.float32)
    assert float(jnp.sqrt(jnp.square(found - k).mean() / jnp.square(k).mean())) < limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [2, 6, 30, 96, 130])
def test_any_even_number_of_inputs_is_cut_into_blocks(kind, inputs):
    k = kernel(3, inputs, 4)
    stored = frozen.quantize(k, kind)
    want = {name: (leaf.shape, leaf.dtype) for name, leaf in frozen.shapes(k.shape, kind).items()}
    assert {name: (array.shape, array.dtype) for name, array in stored.items()} == want
    assert Quantized(**stored).astype(jnp.float32).shape == k.shape


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_is_what_the_folder_holds(tmp_path, kind):
    plain = made.maker("bert", "sequence")()
    held = made.parameters(plain, seed=7)
    made.write_base(tmp_path / "base", plain, held)
    net = made.maker("bert", "sequence", frozen_dtype=kind)(peft=Lora())
    params, said = build.parameters(net, tmp_path / "base", 0, False)  # of another seed
    assert not build.new_of(said) and net.quantized
    found = flatten_dict(frozen.decoded(params, jnp.float32), sep="/")
    for path, want in flatten_dict(held, sep="/").items():
        limit = 0.01 if kind == "int8" else 0.15
        assert np.abs(found[path] - want).max() <= limit * np.abs(want).max(), path


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    stored = frozen.quantize(jnp.zeros((64, 3)), kind)
    assert not np.asarray(Quantized(**stored).astype(jnp.float32)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_decoded_kernel(kind):
    q = Quantized(**frozen.quantize(kernel(64, 8), kind))
    x, bias = kernel(5, 64), kernel(8)

    def through(f, k):
        return jax.value_and_grad(lambda x, bias: jnp.sin(f(x, k, bias)).sum(), (0, 1))(x, bias)

    found, want = through(frozen_affine, q), through(affine, q.astype(jnp.float32))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert np.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_computes_with_what_its_codes_stand_for(kind, scan):
    make = made.maker("llama", "causal_lm", frozen_dtype=kind, scan=scan)
    net = make(peft=Lora())
    params = made.parameters(net)
    assert {path.rpartition("/")[2] for path in flatten_dict(params, sep="/")} >= {"codes", "scales"}
    plain = made.maker("llama", "causal_lm", scan=scan)()
    batch, _ = made.texts(net)
    decoded = made.plain(frozen.decoded(params, jnp.float32))
    assert np.abs(made.logits(net, params, batch) - made.logits(plain, decoded, batch)).max() < 1e-5


def test_experts_are_quantized_and_routers_are_not():
    net = made.maker("mixtral", "causal_lm", frozen_dtype="nf4")(peft=Lora())
    assert "blocks/mlp/gate/kernel" in net.quantized and "blocks/mlp/router/kernel" not in net.quantized


def test_codes_live_where_the_kernel_does():
    c = tiny.config()
    options = dict(head="causal_lm", outputs=3, rules=c.sharding, mesh=tiny.mesh(fsdp=2, tensor=4))
    make = made.maker("llama", "causal_lm", frozen_dtype="nf4")
    net = make.func(*make.args, **(make.keywords | options), peft=Lora(rank=2))
    tree = flatten_dict(net.tree, sep="/")
    codes, whole = tree["blocks/mlp/down/kernel/codes"], net.abstract["blocks/mlp/down/kernel"]
    assert codes.sharding.spec[-1] == whole.sharding.spec[-1]
    params = flatten_dict(made.parameters(net), sep="/")
    assert params["blocks/mlp/down/kernel/codes"].sharding == codes.sharding


def both_ways(shape):
    """A kernel's gradient may be computed as its transpose (layers.sums.outer_sum)."""
    *lead, inputs, outputs = shape
    return (*lead, inputs, outputs), (*lead, outputs, inputs)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_scan_computes_no_gradient_of_what_stays(name):
    """XLA drops a product that nobody asks for, but not out of a loop."""

    def products(**model):
        net = made.maker(name, "causal_lm", scan=True)(**model)
        params = {path: leaf for path, leaf in flatten_dict(net.tree, sep="/").items()}
        mine = {path: leaf for path, leaf in params.items() if net.trains(path)}
        rest = {path: leaf for path, leaf in params.items() if path not in mine}
        batch, _ = made.texts(net)

        def loss(mine, rest):
            return net.forward(unflatten_dict(mine | rest, sep="/"), batch).sum()

        # A kernel's gradient is a product of a kernel's shape.
        kernels = [path for path in net.abstract if path.startswith("blocks/") and path.endswith("/kernel")]
        shapes = {"x".join(map(str, sides)) for path in kernels for sides in both_ways(net.abstract[path].shape[1:])}
        lines = jax.jit(jax.grad(loss)).lower(mine, rest).as_text().splitlines()
        dots = [line for line in lines if "dot" in line]
        return sum(line.rstrip().endswith(f"-> tensor<{shape}xf32>") for line in dots for shape in shapes)

    assert products() > 3 and products(peft=Lora(rank=3)) == 0


def test_few_bits_need_something_that_stays():
    with pytest.raises(UserError, match=r"model.frozen_dtype='nf4' is of what peft keeps"):
        made.maker("bert", "sequence", frozen_dtype="nf4")()
