"""Saving: readable by the safetensors library, exact, sharded, streamed, and all or nothing."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxft.hf import files, save
from jaxft.registry import UserError

TABLE = {"embed/table": ("embed.weight", "V D"), "blocks/up/kernel": ("layer.{N}.up.weight", "F D -> D F")}


def params(scale: float = 1.0) -> dict:
    """A table and three stacked kernels, sharded over eight devices."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)

    def put(shape, spec):
        return jax.device_put((scale * rng.normal(size=shape)).astype(np.float32), NamedSharding(mesh, spec))

    return {"embed": {"table": put((16, 8), P("b"))}, "blocks": {"up": {"kernel": put((3, 8, 24), P(None, "a", "b"))}}}


@pytest.mark.parametrize("dtype", save.DTYPES)
def test_the_safetensors_library_reads_what_was_written(tmp_path, dtype):
    given = params()
    assert save.save(tmp_path, given, TABLE, dtype=dtype) == [files.SINGLE]
    found = load_file(tmp_path / files.SINGLE)
    kind = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}[dtype]
    kernel = np.asarray(given["blocks"]["up"]["kernel"])
    expected = {
        "embed.weight": np.asarray(given["embed"]["table"]),
        **{f"layer.{n}.up.weight": kernel[n].T for n in range(3)},
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == kind
        np.testing.assert_array_equal(found[name], tensor.astype(kind), err_msg=name)
    with safe_open(tmp_path / files.SINGLE, "np") as file:
        assert file.metadata()["format"] == "pt"  # transformers refuses a file without it


def test_a_tensor_with_two_names_is_written_under_both(tmp_path):
    table = TABLE | {"embed/table": ("embed.weight = out.weight", "V D")}
    given = params()
    save.save(tmp_path, given, table, dtype="float32", shard_bytes=1)
    index = json.loads((tmp_path / files.INDEX).read_text())
    for name in ("embed.weight", "out.weight"):
        found = load_file(tmp_path / index["weight_map"][name])[name]
        np.testing.assert_array_equal(found, np.asarray(given["embed"]["table"]))
    assert index["metadata"] == {"total_size": 2 * 16 * 8 * 4 + 3 * 24 * 8 * 4}


def test_shards_follow_the_hub_s_names_and_index(tmp_path):
    one_kernel = 24 * 8 * 4
    names = save.save(tmp_path, params(), TABLE, dtype="float32", shard_bytes=2 * one_kernel)
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert index["metadata"] == {"total_size": 16 * 8 * 4 + 3 * one_kernel}
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / shard)
    assert files.index(tmp_path).keys() == index["weight_map"].keys()


def test_host_memory_holds_one_layer_at_a_time(tmp_path):
    """64 layers of 1 MB: a writer that gathered the model, or one whole parameter, would hold 64 MB."""
    kernel = jnp.zeros((64, 512, 512), jnp.float32)
    save.save(tmp_path, {"k": kernel[:2]}, {"k": ("k.{N}", "F D -> D F")}, dtype="float32")  # imports and compiles
    tracemalloc.start()
    try:
        save.save(tmp_path, {"k": kernel}, {"k": ("k.{N}", "F D -> D F")}, dtype="float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_a_value_that_float16_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"embed.weight has values beyond 65504"):
        save.save(tmp_path, params(scale=1e6), TABLE, dtype="float16")


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dtype='bf16' is not known; known: float32, bfloat16, float16"):
        save.save(tmp_path, params(), TABLE, dtype="bf16")


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    class Usage:
        free = 100

    monkeypatch.setattr(save.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(UserError, match="need 2,816 bytes and the disk has 100 free"):
        save.save(tmp_path, params(), TABLE, dtype="float32")
    assert not list(tmp_path.iterdir())


def test_a_parameter_that_the_table_lacks_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match="extra"):
        save.save(tmp_path, params() | {"extra": jnp.zeros(1)}, TABLE, dtype="float32")


def export(folder, scale: float = 1.0) -> None:
    with save.replacing(folder, beside=("config.json",)) as temporary:
        save.save(temporary, params(scale), TABLE, dtype="float32")
        save.save_json(temporary, "config.json", {"model_type": "bert"})


def test_an_export_replaces_an_earlier_one_whole_and_leaves_nothing_beside_it(tmp_path):
    folder = tmp_path / "runs" / "hf"
    export(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes((folder / files.SINGLE).read_bytes())
    export(folder, scale=2.0)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", files.SINGLE]
    np.testing.assert_array_equal(load_file(folder / files.SINGLE)["embed.weight"], params(2.0)["embed"]["table"])
    assert list(folder.parent.iterdir()) == [folder]


def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(tmp_path):
    folder = tmp_path / "hf"
    export(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(RuntimeError), save.replacing(folder, beside=("config.json",)) as temporary:
        (temporary / "config.json").write_text("half")
        raise RuntimeError
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_dead_process_left_behind_is_mended(tmp_path):
    folder = tmp_path / "hf"
    export(folder)
    folder.rename(tmp_path / ".hf.old")  # it died between the two renames,
    (tmp_path / ".hf.new").mkdir()  # with a new folder not yet complete
    (tmp_path / ".hf.new" / "half").write_text("")
    with pytest.raises(RuntimeError), save.replacing(folder, beside=("config.json",)):
        assert (folder / files.SINGLE).exists()
        raise RuntimeError
    export(folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("held", ["thesis.txt", "model.safetensors", "subfolder/file"])
def test_a_folder_of_somebody_s_files_is_never_replaced(tmp_path, held):
    from safetensors.numpy import save_file

    folder = tmp_path / "mine"
    file = folder / held
    file.parent.mkdir(parents=True)
    if file.suffix == ".safetensors":
        save_file({"a": np.zeros(1, np.float32)}, file, metadata={"format": "pt"})
    else:
        file.write_text("precious")
    with pytest.raises(UserError, match="not an earlier export"):
        export(folder)
    assert file.exists()


@pytest.mark.parametrize(
    "held", ["notes.txt", "handler.py", "adapter.safetensors", "onnx/model.onnx", "tokenizer.json"]
)
def test_what_somebody_put_beside_an_export_is_never_deleted(tmp_path, held):
    folder = tmp_path / "hf"
    export(folder)
    file = folder / held
    file.parent.mkdir(exist_ok=True)
    file.write_text("precious")
    with pytest.raises(UserError, match=rf"not an earlier export of jaxft: {held.split('/')[0]};"):
        export(folder, scale=2.0)
    assert file.read_text() == "precious"
    np.testing.assert_array_equal(load_file(folder / files.SINGLE)["embed.weight"], params()["embed"]["table"])
