"""`python -m jaxft.plan`: train steps of the recipes of configs/mesh, compiled for machines that are not there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.verbs_run import ROOT, environment

pytestmark = pytest.mark.slow

GIB = 2**30
LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5},
    **{"max_position_embeddings": 8192, "vocab_size": 128256, "rope_theta": 500000.0, "tie_word_embeddings": False},
    **{"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128001, "num_key_value_heads": 8},
}
MODELS = {
    "llama-8b": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-70b": LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "mixtral": {
        **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "vocab_size": 32000},
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
        **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 2},
    },
}
SCRATCH = (
    "--config.model.hf=",
    "--config.model.scratch={}",
    "--config.model.scan=True",
)  # BERT-base's are the defaults
# Recipe -> (model, parameters, flags).
CASES = {
    "v5e_2x4": ("", 92e6, ("--topology=v5e:2x4", *SCRATCH)),
    "v5p_4x4x4": ("llama-8b", 8.03e9, ("--topology=v5p:4x4x4",)),
    "v5p_4x4x4_two_slices": ("llama-8b", 8.03e9, ("--topology=v5p:4x4x4", "--slices=2")),
    "v5p_8x8x8": ("llama-70b", 70.55e9, ("--topology=v5p:8x8x8",)),
    "v5e_16x16": ("mixtral", 46.7e9, ("--topology=v5e:16x16",)),
}
TOO_LARGE = ("--topology=v5e:2x4", "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.mesh.tensor=1")


def begin(recipe, *flags):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "jaxft.plan", f"--config=configs/mesh/{recipe}.py", *flags]
    env = {name: value for name, value in environment(1).items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install 'jaxft[plan]'")
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def planned(models):
    """Recipe -> figures; each is compiled in a process of its own, two at a time."""
    waiting, found = list(CASES), {}
    while waiting:
        some, waiting = waiting[:2], waiting[2:]
        begun = {}
        for name in some:
            model, _, flags = CASES[name]
            begun[name] = begin(name, "--json=-", *flags, *([f"--config.model.hf={models / model}"] if model else []))
        for name, process in begun.items():
            out, err = process.communicate(timeout=800)
            assert process.returncode == 0, err
            assert err == "", "what libraries say is kept from the screen"
            found[name] = json.loads(out)
    return found


@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_compiles_and_fits_its_machine(planned, recipe):
    told, (_, parameters, _) = planned[recipe], CASES[recipe]
    assert told["fits"] and told["total"] < told["chip"]["memory"]
    shards = told["mesh"]["fsdp"] * told["mesh"]["tensor"] * told["mesh"]["expert"]
    # Of a mixture what is not in experts is not shared out over `expert`.
    most = (1.3 if recipe == "v5e_16x16" else 1.05) * 4 * parameters / shards
    assert 4 * parameters / shards <= told["parameters"] <= most
    assert told["optimizer"] == pytest.approx(2 * told["parameters"], rel=0.01)
    parts = sum(told[name] for name in ("parameters", "optimizer", "batch_bytes", "activations", "temporaries"))
    assert told["total"] == pytest.approx(parts, rel=0.001)
    assert told["activations"] > 0


@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_gathers_no_more_than_a_table_and_no_array_is_copied_whole(planned, recipe):
    told, (_, parameters, _) = planned[recipe], CASES[recipe]
    assert told["rematerialized"] == 0
    assert told["largest_gather"] <= 1.1 * GIB
    assert told["largest_gather"] < 0.1 * 2 * parameters, "never the whole tree"
    assert ("all-gather" in {one["kind"] for one in told["collectives"]}) == (told["mesh"]["fsdp"] > 1)


@pytest.mark.parametrize("recipe", CASES)
def test_matrix_products_are_in_bfloat16(planned, recipe):
    products = planned[recipe]["products"]
    assert products["bf16"] > 0.999, products


@pytest.mark.parametrize("recipe", CASES)
def test_flops_are_at_least_those_of_the_model_and_less_than_twice(planned, recipe):
    told, (_, parameters, _) = planned[recipe], CASES[recipe]
    done = told["flops"] * told["devices"]
    assert told["flops_known"] and told["model_flops"] <= 1.05 * done and done < 2 * told["model_flops"]
    if recipe != "v5e_16x16":  # of whose experts two work for a token
        assert told["model_flops"] >= 0.75 * 6 * parameters * told["tokens"]
    assert 0 < told["mfu_at_most"] < 1 and told["seconds_at_least"] == max(told["seconds_of"].values())


def test_slices_send_gradients_over_the_network_and_one_slice_nothing(planned):
    one, two = planned["v5p_4x4x4"], planned["v5p_4x4x4_two_slices"]
    assert one["seconds_of"]["network"] == 0
    sent = two["seconds_of"]["network"] * two["chip"]["network"]  # bytes of a device
    assert 0.4 * two["parameters"] <= sent <= 3 * two["parameters"]


def test_what_cannot_fit_is_refused_with_the_bytes_too_many_and_what_to_change(models):
    process = begin("v5p_4x4x4", *TOO_LARGE, f"--config.model.hf={models / 'llama-8b'}")
    out, err = process.communicate(timeout=800)
    assert process.returncode == 1
    assert "jaxft: does not fit v5e:2x4: " in err and " bytes (" in err and "too many on each device" in err
    assert "train.accumulate=" in err and "optim.moments='8bit': saves up to 5.58 GiB" in err
    assert "there are" in out and "15.75" in out


LARGE = """
from jaxft.planning import topology
topology.prepare()
import jax, jax.numpy as jnp
from jaxft.planning import measure
(device,) = topology.devices("v5e:1x1", 1)
where = jax.sharding.SingleDeviceSharding(device)
gib = lambda n: jax.ShapeDtypeStruct((int(n * 2**18), 1024), jnp.float32, sharding=where)
def step(a, x, w):
    u = jnp.cumsum(jnp.sin(x) @ w, axis=0)
    return a * 2 + (jnp.flip(u, 0) @ w).sum() * 1e-9
print(*measure._compiled(jax.jit(step, donate_argnums=0).lower(gib(4), gib(6), gib(1 / 256)))[1])
"""


def test_bytes_too_many_are_those_of_what_is_given_and_what_is_made(models):
    """10 GiB are given, and two arrays of 6 are made on the way."""
    env = {name: value for name, value in environment(1).items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used, over = map(float, done.stdout.split())
    assert used == pytest.approx(22 * GIB, rel=0.01) and over == pytest.approx(used - 15.75 * GIB, rel=0.01)


WITH_THE_HOST = """
from jaxft.planning import topology
topology.prepare()
import jax, jax.numpy as jnp
from jaxft.planning import measure
(device,) = topology.devices("v5e:1x1", 1)
here = jax.sharding.SingleDeviceSharding(device)
host = here.with_memory_kind("pinned_host")
def mib(n, where):
    return jax.ShapeDtypeStruct((n * 256, 1024), jnp.float32, sharding=where)
def step(far, near):
    return jax.device_put(jax.device_put(far, here) * 2, host), near * 2
jitted = jax.jit(step, out_shardings=(host, here), donate_argnums=(0, 1))
told = measure._read(jitted.lower(mib(256, host), mib(64, here)).compile(), [device], 64 * 2**20)
print(told["total"], told["temporaries"])
"""


def test_what_lies_in_the_hosts_memory_is_not_of_the_device(models):
    """64 MiB stay on the device; 256 come from the host, and as many go back."""
    env = {name: value for name, value in environment(1).items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", WITH_THE_HOST]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    total, temporaries = map(float, done.stdout.split())
    assert temporaries == pytest.approx(512 * 2**20, rel=0.01) and total == temporaries + 64 * 2**20


def test_a_plan_for_this_machine_says_what_a_run_would_say(tmp_path):
    flags = ("--devices=8", "--config.mesh.data=4", "--config.mesh.fsdp=2", f"--json={tmp_path / 'plan.json'}")
    process = subprocess.run(
        [sys.executable, "-m", "jaxft.plan", "--config=configs/bert_cls.py", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1, "expert": 1}
    assert "memory of a device" in process.stdout and "no times and no limit" in process.stdout
    assert told["chip"] is None and told["fits"] and told["products"] == {"f32": 1.0}
    # What a CPU's program says of its own peak has none of what the step works with.
    held = sum(told[name] for name in ("parameters", "optimizer", "other_state", "batch_bytes"))
    assert told["activations"] + told["temporaries"] == told["total"] - held > 2**20


def test_a_search_ranks_what_fits(tmp_path):
    flags = ("--devices=8", "--search=3", f"--json={tmp_path / 'plans.json'}")
    process = subprocess.run(
        [sys.executable, "-m", "jaxft.plan", "--config=configs/bert_cls.py", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "plans.json").read_text())
    assert len(found) == 3 and all(told["fits"] for told in found)
    assert "\n1. --config.mesh." in process.stdout and "\n3. --config.mesh." in process.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v5e:3x5",), 'did you mean "v5e:4x4"'),
        ((), "name one of --topology"),
        (("--topology=v5e:2x4", "--devices=8"), "name one of --topology"),
        (("--devices=8", "--slices=2"), "slices are of a --topology"),
        (("--topology=v5e:2x4", "--config.mesh.data=3"), "the product 3 must equal the number of devices, 8"),
        (
            ("--topology=v5e:2x4", "--slices=2", "--config.mesh.data=1", "--config.mesh.tensor=-1"),
            "in 2 slices",
        ),
        (("--topology=v5e:2x4", "--config.train.batch=12", "--config.mesh.data=8"), "train.batch=12 rows are not div"),
        (("--devices=8", "--json=/nowhere/plan.json"), "--json=/nowhere/plan.json: the folder /nowhere does not exist"),
        (("--topology=v5p:0x0x0",), "there is no such slice"),
        (("--devices=8", "--config.sharding.activations.L=data"), "are both on mesh axis data"),
    ],
)
def test_a_mistake_is_one_message_before_any_compile(flags, message):
    process = begin("v5e_2x4", "--config.model.hf=", "--config.model.scratch={}", *flags)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert message in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
