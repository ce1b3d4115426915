"""Adapters as the `peft` library leaves them: without a config.json, with what people usually ask it for."""

import functools
import json
import shutil

import numpy as np
import pytest

from jaxft import adapters, build
from jaxft.config import Sharding
from jaxft.hf import adapters as files
from jaxft.models import bert
from jaxft.peft.lora import Lora
from jaxft.registry import UserError
from tests import tiny
from tests.peft import made

pytestmark = [
    pytest.mark.slow,
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")),
]
LABELS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A BERT without a head of classes, but for the pooler; not from the seed that what is missing is drawn by."""
    folder = tmp_path_factory.mktemp("base") / "bert"
    net = made.maker("bert", "sequence")()
    made.write_base(folder, net, made.parameters(net, seed=7))
    return folder


def adapter(base, folder, **options):
    """(peft's model with all that trains moved, its logits on random texts); saved in `folder`."""
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    torch.manual_seed(0)
    cls = transformers.AutoModelForSequenceClassification
    plain = cls.from_pretrained(
        str(base), num_labels=LABELS, ignore_mismatched_sizes=True, attn_implementation="eager", dtype=torch.float32
    )
    options = {"target_modules": ["query", "value"], **options}
    model = peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS", r=4, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return model


def read(folder):
    at = adapters.opened(str(folder))
    config = tiny.config()
    section = adapters.section("bert", str(folder), dtype="float32", param_dtype="float32")
    _, cfg = build.family_config(section, at.hf, pad_id=0)
    rules = Sharding({}, {})
    options = dict(head="sequence", outputs=len(at.hf["id2label"]), model=config.model, rules=rules)
    make = functools.partial(build.network, bert, cfg, mesh=tiny.mesh(devices=1), **options)
    net, params, _, new = adapters.loaded(make, at)
    assert not new
    return net, params


@pytest.mark.parametrize(
    "options",
    [
        {},  # the pooler is the base's, the classifier the adapter's
        {"target_modules": "all-linear"},  # the pooler as well
        {"target_modules": ["query", "dense"], "rank_pattern": {"query": 2}, "alpha_pattern": {"dense": 3}},
        {"bias": "lora_only"},
        {"bias": "all"},
    ],
    ids=["usual", "all-linear", "dense", "biases-of-layers", "biases"],
)
def test_it_computes_what_peft_does(base, tmp_path, options):
    theirs = adapter(base, tmp_path / "adapter", **options)
    net, params = read(tmp_path / "adapter")
    batch, given = made.texts(net)
    difference = made.their_logits(theirs, net, batch, given) - made.logits(net, params, batch)
    assert np.abs(difference).max() <= 1e-5


def test_classes_without_names_are_counted_by_the_head(base, tmp_path):
    adapter(base, tmp_path / "adapter")
    hf = adapters.opened(str(tmp_path / "adapter")).hf
    assert hf["id2label"] == {str(i): f"LABEL_{i}" for i in range(LABELS)}
    assert hf["architectures"] == ["ForSequenceClassification"]
    named = {"id2label": dict(enumerate("abcd"))}
    assert "id2label" not in files.head_fields(tmp_path / "adapter", named), "the base has names for as many"


def test_a_lora_without_one_of_its_parts_is_refused(base, tmp_path):
    adapter(base, tmp_path / "adapter")
    tensors = files.load(tmp_path / "adapter")
    files.save(
        tmp_path / "adapter",
        {name: array for name, array in tensors.items() if "0.attention.self.query.lora_B" not in name},
    )
    with pytest.raises(UserError, match=r"lacks some of lora_A and lora_B of .*layer.0.attention.self.query"):
        read(tmp_path / "adapter")


def test_an_adapter_of_a_model_of_other_sizes_is_refused_by_both_config_files(base, tmp_path):
    """One that jaxft wrote has a config.json of its own; what only one of both says is no difference."""
    net = made.maker("bert", "sequence")(peft=Lora())
    made.write_adapter(tmp_path / "adapter", net, made.parameters(net), base)
    assert adapters.opened(str(tmp_path / "adapter")).hf["hidden_size"] == net.cfg.d_model
    config = json.loads((base / "config.json").read_text())
    wide = tmp_path / "wide"
    shutil.copytree(base, wide)
    (wide / "config.json").write_text(json.dumps(config | {"hidden_size": 96, "dim": 5}))
    with pytest.raises(UserError, match=rf"it is for hidden_size {net.cfg.d_model}, {wide} has hidden_size 96$"):
        adapters.opened(str(tmp_path / "adapter"), base=str(wide)).hf  # noqa: B018
