"""Every family with every head, exported by jaxft and computed by transformers 4.57 (version 5: tests/models)."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxft import build
from jaxft.hf import folder as hf_folder
from jaxft.hf import save as hf_save
from jaxft.layers.parameter import ones
from tests import tiny
from tests.hf import version4
from tests.models import test_parity as parity

pytestmark = pytest.mark.slow

READ = """
import inspect, json, sys
import numpy as np, torch, transformers
for folder in json.load(sys.stdin):
    architecture = json.load(open(f"{folder}/config.json"))["architectures"][0]
    architecture = getattr(transformers, architecture)
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(architecture).parameters else {}
    model, report = architecture.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options)
    assert not any(report.values()), (folder, report)
    with torch.no_grad():
        out = model.eval()(**{name: torch.tensor(x) for name, x in np.load(f"{folder}/inputs.npz").items()})
    if "last_hidden_state" in out:
        logits = out.last_hidden_state
    else:
        logits = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], -1)
    np.save(f"{folder}/logits.npy", logits.numpy())
print(json.dumps(transformers.__version__))
"""


def random_parameters(net):
    """Drawn wide, so that no bias is 0, no scale 1 and attention is not flat."""
    rng, flat = np.random.default_rng(0), {}
    for path, leaf in net.abstract.items():
        stored = net.stored[path]
        values = rng.normal(1.0 if net.inits[path] is ones else 0.0, 0.2, stored).astype(np.float32)
        beyond = [(0, n - own) for n, own in zip(leaf.shape, stored, strict=True)]
        flat[path] = jax.device_put(np.pad(values, beyond), leaf.sharding)
    return unflatten_dict(flat, sep="/")


def network(family, head, cfg):
    c = tiny.config()
    options = dict(outputs=parity.outputs(head), model=c.model, rules=c.sharding, mesh=tiny.mesh(devices=1))
    return build.network(family, cfg, head=head, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Case -> (folder, our network, our parameters, batch); version 4 has left its logits in each folder."""
    version4.environment()
    root, cases = tmp_path_factory.mktemp("exported"), {}
    for name, head, variant in parity.CASES:
        family = parity.FAMILIES[name]
        net = network(family, head, family.VARIANTS[variant] if variant else family.TINY)
        params, folder = random_parameters(net), root / "-".join((name, head, variant))
        hf_save.save(folder, params, net.table, dtype="float32", shapes=net.stored)
        labels = {"id2label": {str(i): f"label {i}" for i in range(parity.outputs(head))}}
        (folder / "config.json").write_text(json.dumps(hf_folder.config_of(net, labels, "float32")))
        batch = parity.batch_of([[text] for text in parity.texts(family)])
        case = SimpleNamespace(family=family, head=head, net=net, params=params, folder=folder, batch=batch)
        np.savez(folder / "inputs.npz", **parity.hub_inputs(case, batch))
        cases[name, head, variant] = case
    version, _ = version4.run(READ, given=json.dumps([str(case.folder) for case in cases.values()]))
    assert version.startswith("4.57.")
    return cases


@pytest.mark.parametrize("which", parity.CASES, ids=lambda case: "-".join(filter(None, case)))
def test_transformers_4_computes_what_we_do(which, exported):
    case = exported[which]
    ours = np.asarray(jax.jit(case.net.forward)(case.params, case.batch))
    theirs = np.load(case.folder / "logits.npy")
    theirs = theirs.T if case.head == "multiple_choice" else theirs
    theirs = theirs[:, None] if case.head in parity.WHOLE else theirs
    for a, b in zip(parity.per_text(case, ours, case.batch), parity.per_text(case, theirs, case.batch), strict=True):
        np.testing.assert_allclose(a, b, **parity.TOLERANCE)
