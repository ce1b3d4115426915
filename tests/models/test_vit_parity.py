"""ViT against transformers, live, as test_parity.py has it for what reads text; version 4 in a process of its own."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import build
from jaxft.hf import folder as hf_folder
from jaxft.hf import load as hf_load
from jaxft.hf import save as hf_save
from jaxft.hf.layout import rows
from jaxft.layers.loss import softmax_cross_entropy
from jaxft.models import vit
from jaxft.registry import UserError
from tests import tiny
from tests.hf import version4

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
OUTPUTS, ROWS = 5, 3
CASES = {"": vit.TINY, **vit.VARIANTS}


def load(folder, said=()):
    c = tiny.config()
    mesh = tiny.mesh(data=1, fsdp=4, tensor=2)
    cfg = vit.config_from_hf(hf_load.read_config(folder))
    net = build.network(vit, cfg, head="sequence", outputs=OUTPUTS, model=c.model, rules=c.sharding, mesh=mesh)
    params, lines = build.parameters(net, folder, seed=0, reset_head=False)
    assert all(word in "\n".join(lines) for word in said) and bool(lines) == bool(said)
    return net, params


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A tiny random model of transformers, a folder that it was saved to, and what jaxft makes of that."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    import transformers

    cfg = dataclasses.replace(CASES[request.param], eps=1e-3)  # unlike the default, so that one not read shows
    fields = {**vit.config_to_hf(cfg), "num_labels": OUTPUTS, "attn_implementation": "eager"}
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**fields))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(1.0 if "layernorm" in path and path.endswith("weight") else 0.0, 0.2)
    folder = tmp_path_factory.mktemp("vit")
    model.eval().save_pretrained(folder)
    net, params = load(folder)
    assert net.cfg == cfg
    return SimpleNamespace(model=model, folder=folder, net=net, params=params, batch=batch_of(cfg))


def batch_of(cfg):
    shape = (ROWS, cfg.image_size, cfg.image_size, cfg.channels)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    segment = np.ones((ROWS, cfg.positions), np.int32)
    return {"pixels": pixels, "segment": segment, "first": np.zeros((ROWS, 1), np.int32)}


def theirs(model, batch):
    import torch

    return model(pixel_values=torch.tensor(batch["pixels"].transpose(0, 3, 1, 2).copy())).logits


def test_logits_equal_those_of_transformers(case):
    ours = np.asarray(jax.jit(case.net.forward)(case.params, case.batch))[:, 0]
    np.testing.assert_allclose(ours, theirs(case.model, case.batch).detach().numpy(), **TOLERANCE)


def test_loss_and_gradients_equal_those_of_torch_by_name(case, tmp_path):
    import torch

    labels = np.arange(ROWS, dtype=np.int32)

    def loss(params):
        wanted = jnp.asarray(labels[:, None])
        total, weight = softmax_cross_entropy(case.net.forward(params, case.batch), wanted, jnp.ones(wanted.shape))
        return total / weight

    value, grads = jax.jit(jax.value_and_grad(loss))(case.params)
    case.model.zero_grad()
    other = torch.nn.functional.cross_entropy(theirs(case.model, case.batch), torch.tensor(labels).long())
    other.backward()
    np.testing.assert_allclose(value, other.item(), **TOLERANCE)
    wanted, flat = grads_on_disk(case.model, tmp_path), hf_load.flatten(grads)
    seen = set()
    for path, row in rows(case.net.table).items():
        for index, name in row.tensors(flat[path].shape):
            found = row.layout.to_disk(np.asarray(flat[path])[index])
            np.testing.assert_allclose(found, wanted[name], **TOLERANCE, err_msg=name)
            seen.add(name)
    assert seen == set(wanted)


def grads_on_disk(model, folder):
    """Gradients under the names that the weights have on disk, which are others in memory: saved as if they were."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)
    model.save_pretrained(folder)
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.data.copy_(value)
    return load_file(folder / "model.safetensors")


def export(case, folder):
    hf_save.save(folder, case.params, case.net.table, dtype="float32", shapes=case.net.stored)
    labels = {"id2label": {str(i): f"label {i}" for i in range(OUTPUTS)}}
    (folder / "config.json").write_text(json.dumps(hf_folder.config_of(case.net, labels, "float32")))
    return folder


def test_load_then_save_returns_every_tensor_bit_for_bit_and_opens_in_transformers(case, tmp_path):
    import transformers

    ours, before = (load_file(folder / "model.safetensors") for folder in (export(case, tmp_path), case.folder))
    assert ours.keys() == before.keys()
    assert all(ours[name].tobytes() == before[name].tobytes() for name in before)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    again, once = (theirs(one, case.batch).detach().numpy() for one in (model, case.model))
    np.testing.assert_array_equal(again, once)


VERSION4 = """
import json, sys
import numpy as np, torch, transformers
folder = sys.argv[1]
model, report = transformers.AutoModelForImageClassification.from_pretrained(
    folder, attn_implementation="eager", output_loading_info=True)
assert not any(report.values()), report
with torch.no_grad():
    logits = model.eval()(pixel_values=torch.tensor(np.load(f"{folder}/pixels.npy"))).logits
np.save(f"{folder}/logits.npy", logits.numpy())
print(json.dumps(transformers.__version__))
"""


def test_transformers_4_computes_what_we_do(case, tmp_path):
    version4.environment()
    np.save(export(case, tmp_path) / "pixels.npy", case.batch["pixels"].transpose(0, 3, 1, 2).copy())
    version, _ = version4.run(VERSION4, str(tmp_path))
    assert version.startswith("4.57.")
    ours = np.asarray(jax.jit(case.net.forward)(case.params, case.batch))[:, 0]
    np.testing.assert_allclose(ours, np.load(tmp_path / "logits.npy"), **TOLERANCE)


def test_a_bare_trunk_gets_a_new_head_and_loses_its_pooler_aloud(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="a trunk is written by transformers")
    transformers.ViTModel(transformers.ViTConfig(**vit.config_to_hf(vit.TINY))).save_pretrained(tmp_path)
    load(tmp_path, said=("new, not in the checkpoint: head/classifier", "dropped, of another head: pooler.dense"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"image_size": [224, 192]}, r"image_size that is not supported: \[224, 192\], which is not square"),
        ({"image_size": 30}, "image_size=30 is not divisible by patch_size=16"),
        ({"rotary_surprise": 3}, "rotary_surprise=3"),
    ],
)
def test_what_is_not_built_is_refused_by_name(field, message):
    with pytest.raises(UserError, match=message):
        vit.config_from_hf({"model_type": "vit", **field})


def test_both_sides_of_a_square_are_one_size():
    assert vit.config_from_hf({"model_type": "vit", "image_size": [32, 32], "patch_size": [8, 8]}).positions == 17
