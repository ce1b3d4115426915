"""BERT against logits of transformers that are stored, for a run without torch; and mistakes that must be seen."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import build, sharding
from jaxft.hf import load as hf_load
from jaxft.hf import save as hf_save
from jaxft.models import bert

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
GOLDEN = Path(__file__).parents[1] / "golden"
MESHES = [dict(data=8, fsdp=1, tensor=1), dict(data=1, fsdp=4, tensor=2)]
RULES = SimpleNamespace(
    params={"D": "fsdp", "F": "tensor", "HK": "tensor", "V": "tensor"},
    activations={"B": ("data", "fsdp"), "F": "tensor", "H": "tensor"},
)
RUN = SimpleNamespace(
    dtype="float32", param_dtype="float32", frozen_dtype="", scan=False, remat="none", attention="auto"
)


def load(folder: Path, mesh: dict[str, int] = MESHES[0], **changes: Any) -> tuple[Any, Any]:
    """The network that config.json of `folder` describes, with `changes` to its Config, and its weights."""
    cfg = dataclasses.replace(bert.config_from_hf(hf_load.read_config(folder)), **changes)
    net = build.network(
        bert,
        cfg,
        head="sequence",
        outputs=5,
        model=RUN,
        rules=RULES,
        mesh=sharding.make_mesh(mesh | dict(context=1, expert=1)),
    )
    params, said = build.parameters(net, folder, seed=0, reset_head=False)
    assert not said
    return net, params


def batch_of(packed: list[list[tuple[np.ndarray, np.ndarray]]], length: int, start: int = 0) -> dict[str, np.ndarray]:
    """Rows of segments (ids, types); padding after them, and `start` of it before. Positions restart per segment."""
    B, S = len(packed), max(map(len, packed))
    batch = {key: np.zeros((B, length), np.int32) for key in ("ids", "type", "segment", "position")}
    batch["first"] = np.zeros((B, S), np.int32)
    for row, segments in enumerate(packed):
        at = start
        for slot, (ids, types) in enumerate(segments):
            span = (row, slice(at, at + len(ids)))
            batch["ids"][span], batch["type"][span], batch["segment"][span] = ids, types, slot + 1
            batch["position"][span] = np.arange(len(ids))
            batch["first"][row, slot] = at
            at += len(ids)
    return batch


def texts(inputs: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, types) of each row without its padding."""
    return [
        (ids[mask == 1], types[mask == 1])
        for ids, types, mask in zip(inputs["ids"], inputs["types"], inputs["mask"], strict=True)
    ]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The stored checkpoint as a folder, its inputs and the logits that transformers computed."""
    stored = np.load(GOLDEN / "bert.npz")
    folder = tmp_path_factory.mktemp("golden")
    (folder / "config.json").write_text(str(stored["config"]))
    weights = {name.removeprefix("weight/"): stored[name] for name in stored.files if name.startswith("weight/")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    inputs = {key: stored[f"input/{key}"] for key in ("ids", "types", "mask")}
    return SimpleNamespace(folder=folder, weights=weights, inputs=inputs, logits=stored["logits"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same model live in torch, and a folder that save_pretrained wrote."""
    pytest.importorskip("torch", reason="live parity needs torch; the golden logits stand in for it")
    make = runpy.run_path(str(GOLDEN / "make_bert.py"))
    model = make["tiny_bert"]()
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model, inputs=make["inputs"](), logits=make["logits"])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_logits_equal_the_stored_ones_of_transformers(golden, mesh):
    net, params = load(golden.folder, mesh)
    batch = batch_of([[text] for text in texts(golden.inputs)], length=72)
    np.testing.assert_allclose(jax.jit(net.forward)(params, batch)[:, 0], golden.logits, **TOLERANCE)


def test_two_texts_packed_in_a_row_give_the_logits_of_two_rows(golden):
    net, params = load(golden.folder)
    a, b, c = texts(golden.inputs)
    logits_BSC = jax.jit(net.forward)(params, batch_of([[a], [b, c]], length=76))
    np.testing.assert_allclose(logits_BSC[0, 0], golden.logits[0], **TOLERANCE)
    np.testing.assert_allclose(logits_BSC[1], golden.logits[1:], **TOLERANCE)


def test_padding_before_the_text_changes_nothing(golden):
    net, params = load(golden.folder)
    logits_BSC = jax.jit(net.forward)(params, batch_of([[text] for text in texts(golden.inputs)], length=79, start=7))
    np.testing.assert_allclose(logits_BSC[:, 0], golden.logits, **TOLERANCE)


def test_the_stored_logits_are_those_of_the_installed_transformers(golden, reference):
    np.testing.assert_allclose(reference.logits(reference.model, reference.inputs), golden.logits, **TOLERANCE)


def test_left_padded_logits_equal_those_of_transformers(reference):
    """transformers pools index 0, a padding token here: its encoder's output at the first real token is compared."""
    import torch

    net, params = load(reference.folder)
    ids, types = texts(reference.inputs)[1]
    batch = batch_of([[(ids, types)]], length=len(ids) + 9, start=9)
    to_torch = {key: torch.tensor(value, dtype=torch.long) for key, value in batch.items()}
    with torch.no_grad():
        hidden_BLD = reference.model.bert(
            input_ids=to_torch["ids"],
            token_type_ids=to_torch["type"],
            position_ids=to_torch["position"],
            attention_mask=(to_torch["segment"] > 0).long(),
        ).last_hidden_state
        pooled_BP = torch.tanh(reference.model.bert.pooler.dense(hidden_BLD[:, 9]))
        expected_BC = reference.model.classifier(pooled_BP).numpy()
    np.testing.assert_allclose(jax.jit(net.forward)(params, batch)[:, 0], expected_BC, **TOLERANCE)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_load_then_save_returns_every_tensor_bit_for_bit(golden, tmp_path, mesh):
    net, params = load(golden.folder, mesh)
    hf_save.save(tmp_path, params, net.table, dtype="float32", shapes=net.stored)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == golden.weights.keys()
    for name, tensor in golden.weights.items():
        assert saved[name].dtype == tensor.dtype and saved[name].tobytes() == tensor.tobytes(), name


def test_a_bare_encoder_with_legacy_names_loads_and_only_the_classifier_is_new(golden, tmp_path):
    def old(name: str) -> str:
        name = name.removeprefix("bert.")
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    weights = {old(name): tensor for name, tensor in golden.weights.items() if not name.startswith("classifier")}
    weights["embeddings.position_ids"] = np.arange(80)[None]
    save_file(weights, tmp_path / "model.safetensors")
    net, params = load(golden.folder)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    loaded, report = hf_load.load(
        tmp_path,
        net.table,
        abstract,
        prefixes=[bert.HF_PREFIX],
        ignore=bert.HF_IGNORE,
        other=bert.HF_OTHER,
        legacy=bert.HF_LEGACY,
        optional={path for path in net.abstract if path.startswith("head/")},
        shapes=net.stored,
    )
    assert sorted(report.new) == ["head/classifier/bias", "head/classifier/kernel"] and not report.dropped
    del params["head"]["classifier"]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def swap(params: Any, path: str, one: str, other: str) -> None:
    at = params
    for key in path.split("/"):
        at = at[key]
    at[one], at[other] = at[other], at[one]


def zero_bias(params: Any) -> None:
    params["blocks"]["mlp"]["down"]["bias"] *= 0


MISTAKES = {
    "permuted q and k": (lambda params: swap(params, "blocks/attn", "q", "k"), {}),
    "swapped gamma and beta": (lambda params: swap(params, "blocks/mlp_norm", "scale", "bias"), {}),
    "missing bias": (zero_bias, {}),
    "wrong eps": (lambda params: None, {"eps": 1e-12}),
    "gelu variant": (lambda params: None, {"act": "gelu_new"}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_transformers_sees(golden, mistake):
    """Guards the tests above: each classic mistake of a conversion must be far outside their tolerance."""
    damage, changes = MISTAKES[mistake]
    net, params = load(golden.folder, **changes)
    damage(params)
    batch = batch_of([[text] for text in texts(golden.inputs)], length=72)
    difference = np.abs(jax.jit(net.forward)(params, batch)[:, 0] - golden.logits).max()
    assert difference > 10 * TOLERANCE["atol"]
