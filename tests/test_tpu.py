"""Train steps of BERT-base, a Llama and a Mixtral, compiled by libtpu for TPU v5e chips that need not be there."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from tests.verbs_run import ROOT, environment

GIB = 2**30
CHIP = 16 * GIB  # memory of a TPU v5e
MESHES = ({"data": 8}, {"fsdp": 4, "tensor": 2})
SHARED_EXPERTS = {"fsdp": 2, "expert": 4}
CUT_ROWS = {"context": 8}
STEPS = [("bert", sizes) for sizes in MESHES]
STEPS += [("llama", MESHES[1]), ("mixtral", SHARED_EXPERTS), ("long", CUT_ROWS)]
SMALL = 32 * 128 * 2  # elements of the classifier's products


@pytest.fixture(scope="module")
def compiled():
    """(network, mesh) -> (what tests/tpu_step.py prints, stderr). All compile at once, each in its own process."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install 'jaxft[plan]'")
    # Many processes may load libtpu at once: none opens a TPU.
    env = environment(1, TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = {
        (name, str(sizes)): subprocess.Popen(
            [sys.executable, "-m", "tests.tpu_step", name, json.dumps(sizes)], cwd=ROOT, env=env, text=True, **pipes
        )
        for name, sizes in STEPS
    }
    done = {}
    for step, process in started.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        done[step] = json.loads(out), err
    return done


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_train_step_of_bert_base_compiles_for_a_tpu_and_fits(compiled, sizes):
    found, errors = compiled["bert", str(sizes)]
    state = 12 * 108e6  # float32 parameters and two moments
    needed = found["argument_size_in_bytes"] + found["temp_size_in_bytes"]
    assert state / 8 <= needed <= CHIP
    share = 8 if "fsdp" in sizes else 1
    assert found["argument_size_in_bytes"] <= 1.05 * state / share, "what is sharded is not whole on every chip"
    assert "Involuntary full rematerialization" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_its_matrix_products_are_in_bfloat16_and_gradients_meet(compiled, sizes):
    found, _ = compiled["bert", str(sizes)]
    large = [dtype for dtype, size in found["products"] if size > SMALL]
    assert len(large) >= 18, "forward and backward of six kernels"
    assert set(large) == {"bf16"}
    assert found["collectives"]["all-reduce"] > 0
    assert (found["collectives"]["all-gather"] > 0) == ("fsdp" in sizes)


@pytest.mark.slow
def test_a_decoder_of_long_rows_attends_by_splash_kernels_forward_and_backward(compiled):
    """With six heads for two devices, but three key heads: these are repeated."""
    found, errors = compiled["llama", str(MESHES[1])]
    for phase in ("fwd", "dq", "dkv"):
        assert any(name.startswith(f"splash_mha_{phase}") for name in found["kernels"])
    assert not found["square"], "no array has all queries and all keys"
    assert "Involuntary full rematerialization" not in errors


@pytest.mark.slow
def test_a_chip_gathers_the_kernels_of_its_own_experts_and_of_no_other(compiled):
    found, errors = compiled["mixtral", str(SHARED_EXPERTS)]
    kernels = [shape for shape in found["gathered"] if sorted(shape)[-2:] == [384, 768]]
    assert kernels, "they are shared out over fsdp"
    assert max(math.prod(shape) for shape in kernels) == 2 * 384 * 768, "of eight experts over four chips"
    assert "Involuntary full rematerialization" not in errors


@pytest.mark.slow
def test_of_a_row_of_16384_tokens_a_chip_holds_an_eighth_and_keys_go_around(compiled):
    found, errors = compiled["long", str(CUT_ROWS)]
    assert found["collectives"]["collective-permute"] > 0 and not found["gathered"]
    assert found["temp_size_in_bytes"] < 0.25 * GIB, "of a whole row it is 1.6 GiB"
    assert "Involuntary full rematerialization" not in errors
