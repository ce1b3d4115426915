"""The call of cuDNN: its meaning by plain XLA, and its lowering for CUDA. No GPU has run it."""

import jax
import jax.numpy as jnp
import pytest

from jaxft import sharding
from jaxft.layers.attention import Where, dense
from jaxft.layers.kernels import cudnn
from tests import tiny
from tests.layers.kernels.rows import assert_equal, heads, run, where_of

CASES = {
    "both-ways": {},
    "causal": dict(causal=True),
    "causal-window": dict(causal=True, window=10),
    "window": dict(window=10),
}


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_what_is_asked_for_is_what_the_dense_computation_does(how):
    where, arrays = where_of(60, **how), heads(60)
    with jax.numpy_rank_promotion("allow"):
        ours = run(lambda *x: cudnn.attend(*x, where, implementation="xla"), where, *arrays)
    assert_equal(ours, run(lambda *x: dense(*x, where), where, *arrays))


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_it_lowers_for_cuda_on_many_devices(how, monkeypatch):
    stablehlo = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)  # asks the library, which is not here
    on, rules = tiny.mesh(data=2, fsdp=2, tensor=2), {"B": ("data", "fsdp"), "H": "tensor", "G": "tensor"}

    def loss(q, k, v, segment_BL):
        with sharding.activations(on, rules):
            return cudnn.attend(q, k, v, Where.within(segment_BL, **how)).astype(jnp.float32).sum()

    arrays = [jax.ShapeDtypeStruct((4, 256, n, 64), jnp.bfloat16) for n in (4, 2, 2)]
    with jax.numpy_rank_promotion("allow"):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays, jax.ShapeDtypeStruct((4, 256), jnp.int32))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("__cudnn$fmhaScaleBiasSoftmax(", "__cudnn$fmhaScaleBiasSoftmaxBackward("):
        assert f"stablehlo.custom_call @{name}" in text
    window = how["window"] if how.get("causal") and "window" in how else 0
    assert f"sliding_window_length\\22: {window}" in text
    assert ("CAUSAL" in text) == how.get("causal", False)
