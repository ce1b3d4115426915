"""Who computes attention: the rule, said once more."""

import dataclasses

import jax
import pytest

from jaxft.layers.attention import attention
from jaxft.layers.kernels import choice, chunked
from jaxft.layers.kernels.choice import Call, Machine, choose
from jaxft.registry import UserError
from tests import tiny
from tests.layers.kernels.rows import assert_equal, heads, run, where_of

CPU, TPU, HOPPER, AMPERE = Machine("cpu"), Machine("tpu"), Machine("cuda", 9.0), Machine("cuda", 8.0)
LONG = Call(TPU, "bfloat16", L=2048, M=2048, K=64, V=64, causal=True)


def call(**changes):
    return dataclasses.replace(LONG, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "splash"),
        (dict(L=512, M=512), "dense"),
        (dict(L=640, M=640), "splash"),
        (dict(L=700, M=700), "chunked"),
        (dict(L=12, placed=True), "dense"),
        (dict(L=600, placed=True), "chunked"),
        (dict(L=1024, causal=False), "splash"),
        (dict(L=1024), "chunked"),
        (dict(window=100, softcap=True), "splash"),
        (dict(bias=True), "chunked"),
        (dict(drop=True), "chunked"),
        (dict(K=192, V=128), "splash"),
        (dict(K=512, V=512), "chunked"),
        (dict(dtype="float32"), "chunked"),
        (dict(machine=CPU), "chunked"),
        (dict(machine=CPU, L=512, M=512), "dense"),
        (dict(machine=Machine("rocm")), "chunked"),
        (dict(machine=HOPPER), "cudnn"),
        (dict(machine=HOPPER, L=512, M=512), "dense"),
        (dict(machine=HOPPER, dtype="float16"), "cudnn"),
        (dict(machine=HOPPER, dtype="float32"), "chunked"),
        (dict(machine=HOPPER, K=256, V=256), "cudnn"),
        (dict(machine=AMPERE, K=256, V=256), "chunked"),
        (dict(machine=Machine("cuda", 7.5)), "chunked"),
        (dict(machine=HOPPER, K=60, V=60), "chunked"),
        (dict(machine=HOPPER, K=192, V=128), "chunked"),
        (dict(machine=HOPPER, softcap=True), "chunked"),
        (dict(machine=HOPPER, L=2047, M=2047), "chunked"),
        (dict(machine=HOPPER, bias=True), "chunked"),
        (dict(cut=2), "ring"),
        (dict(cut=2, L=12, placed=True), "ring"),
        (dict(cut=2, L=512, M=512, drop=True, machine=CPU), "ring"),
        (dict(cut=2, bias=True), "dense"),
    ],
)
def test_auto_takes_the_kernel_of_the_platform_where_it_fits(changes, expected):
    assert choose("auto", call(**changes)) == expected


@pytest.mark.parametrize("wish", ["dense", "chunked"])
def test_what_computes_everything_is_never_refused(wish):
    assert choose(wish, call(L=8, bias=True, drop=True, machine=CPU)) == wish


@pytest.mark.parametrize(
    ("wish", "changes", "reason"),
    [
        ("splash", dict(machine=CPU), "needs a TPU, and this is a cpu"),
        ("splash", dict(L=700, M=700), "needs lengths that 128 divides, not 700"),
        ("splash", dict(bias=True), "adds no bias to the scores"),
        ("splash", dict(drop=True), "set attention_dropout=0"),
        ("splash", dict(dtype="float32"), "needs model.dtype=bfloat16, not float32"),
        ("splash", dict(L=1024), "no causality and no window between sequences of 1024 and 2048 tokens"),
        ("splash", dict(cut=2), "needs whole rows, and sharding.activations.L cuts them into 2 pieces"),
        ("cudnn", {}, "needs an NVIDIA GPU, Ampere or newer, and this is a tpu"),
        ("cudnn", dict(machine=HOPPER, softcap=True), "has no soft cap of scores"),
    ],
)
def test_a_kernel_that_cannot_do_what_is_asked_is_refused_with_the_reason(wish, changes, reason):
    with pytest.raises(UserError, match=f'model.attention="{wish}" .*{reason}.*; use "auto"'):
        choose(wish, call(**changes))


@pytest.mark.parametrize("wish", ["dense", "chunked"])
def test_of_rows_that_are_cut_the_wish_decides_about_blocks_and_with_a_bias_it_is_fulfilled(wish):
    assert choose(wish, call(cut=4)) == "ring"
    assert choice.block(wish, call(cut=4)) == {"dense": 512, "chunked": chunked.BLOCK}[wish]
    assert choose(wish, call(cut=4, bias=True)) == wish
    assert choice.block("auto", call(cut=4)) == 512, "of two pieces that is few scores"
    assert choice.block("auto", call(cut=2)) == chunked.BLOCK


def test_a_wished_kernel_leaves_out_the_few_queries_that_the_last_layer_is_asked_for():
    assert choose("splash", call(L=12, placed=True)) == "dense"
    assert choose("splash", call(L=256, M=256)) == "splash"


def test_the_wish_of_the_config_reaches_attention_and_is_refused_before_anything_is_built():
    one = tiny.mesh(devices=1)
    net = tiny.network(one, attention="chunked")
    assert net.how.attention == "chunked"
    with pytest.raises(UserError, match=r'model.attention="splash" needs a TPU'):
        tiny.network(one, attention="splash")
    with choice.wished("cudnn"), pytest.raises(UserError, match="needs an NVIDIA GPU"):
        attention(*heads(8), where_of(8), 1.0)


def test_long_rows_are_chunked_without_a_wish():
    where, arrays = where_of(520, causal=True), heads(520)
    text = jax.jit(lambda *x: attention(*x, where, 0.3)).lower(*arrays).as_text()
    assert "520x520" not in text and "while" in text

    def by(wish):
        def function(*x):
            with choice.wished(wish):
                return attention(*x, where, 0.3)

        return run(function, where, *arrays)

    assert_equal(by("auto"), by("dense"))
