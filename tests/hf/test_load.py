"""Loading: every device reads its slice, and whatever does not fit is listed in one message."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jaxft.hf import files, load
from jaxft.hf import read as hf_read
from jaxft.hf.layout import parts, rows
from jaxft.registry import UserError

TABLE = {
    "embed/table": ("net.embed.weight", "V D"),
    "blocks/up/kernel": ("net.layer.{N}.up.weight", "F D -> D F"),
    "blocks/up/bias": ("net.layer.{N}.up.bias", "F"),
    "head/out/kernel": ("out.weight", "C D -> D C"),
    "head/out/bias": ("out.bias", "C"),
}
SHAPES = {
    "embed/table": (16, 8),
    "blocks/up/kernel": (4, 8, 24),
    "blocks/up/bias": (4, 24),
    "head/out/kernel": (8, 3),
    "head/out/bias": (3,),
}
SPECS = {
    "embed/table": P("a", "b"),
    "blocks/up/kernel": P(None, "b", "a"),
    "blocks/up/bias": P("a", None),
    "head/out/kernel": P(("a", "b"), None),
    "head/out/bias": P(),
}
OPTIONS = dict(prefixes=["net."], ignore=[r"(net\.)?position_ids"], other=[r"lm\..*"], legacy={".gamma": ".weight"})
HEAD = {"head/out/kernel", "head/out/bias"}


def checkpoint(dtype: np.dtype = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {"net.embed.weight": (16, 8), "out.weight": (3, 8), "out.bias": (3,)}
    for n in range(4):
        tensors |= {f"net.layer.{n}.up.weight": (24, 8), f"net.layer.{n}.up.bias": (24,)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in tensors.items()}


def abstract(dtype: np.dtype = np.float32) -> dict:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tree: dict = {}
    for path, shape in SHAPES.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, SPECS[path]))
    return tree


def read(folder, tensors, *, dtype=np.float32, table=TABLE, **options):
    save_file(tensors, folder / files.SINGLE)
    return load.load(folder, table, abstract(dtype), **OPTIONS | options)


@pytest.mark.parametrize("stored", [np.float32, jnp.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_every_shard_holds_its_part_of_the_checkpoint_in_the_wanted_dtype(tmp_path, stored, wanted):
    tensors = checkpoint(stored)
    params, report = read(tmp_path, tensors, dtype=wanted)
    flat = load.flatten(params)
    expected = {
        "embed/table": tensors["net.embed.weight"],
        "blocks/up/kernel": np.stack([tensors[f"net.layer.{n}.up.weight"].T for n in range(4)]),
        "blocks/up/bias": np.stack([tensors[f"net.layer.{n}.up.bias"] for n in range(4)]),
        "head/out/kernel": tensors["out.weight"].T,
        "head/out/bias": tensors["out.bias"],
    }
    assert flat.keys() == expected.keys() and not report.new and not report.dropped
    for path, whole in expected.items():
        assert flat[path].dtype == wanted and flat[path].sharding.spec == SPECS[path]
        for shard in flat[path].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole.astype(wanted)[shard.index], err_msg=path)


def test_every_byte_is_read_once_however_many_devices_need_it(tmp_path, monkeypatch):
    taken, plain = [], hf_read.rows_of

    def spy(tensor, begin, end, local=None):
        taken.append((tensor.offset, begin, end, tensor.shape[0]))
        return plain(tensor, begin, end, local)

    monkeypatch.setattr(hf_read, "rows_of", spy)
    monkeypatch.setattr(hf_read, "PIECE", 150)  # bytes: several pieces a tensor, none of them even
    read(tmp_path, checkpoint())
    by_tensor = {}
    for offset, begin, end, all_rows in sorted(taken):
        assert by_tensor.setdefault(offset, 0) == begin, "neither a gap nor anything twice"
        by_tensor[offset] = end
        if end == all_rows:
            by_tensor[offset] = "whole"
    assert len(by_tensor) == len(checkpoint()) and set(by_tensor.values()) == {"whole"}


def test_pieces_leave_equal_parameters(tmp_path, monkeypatch):
    whole, _ = read(tmp_path, checkpoint())
    monkeypatch.setattr(hf_read, "PIECE", 150)
    pieces, _ = load.load(tmp_path, TABLE, abstract(), **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, pieces, whole)


@pytest.mark.parametrize("layout, needed", [("F D -> D F", (6, 12)), ("D F -> D F", (2, 4))])
def test_rows_that_no_device_of_this_process_needs_are_not_read(layout, needed):
    """Of a parameter [D, F] = [8, 24], the devices here hold columns 6 to 12 of rows 2 to 4."""
    row = rows({"a": ("x", layout)})["a"]
    tensor = files.Stored(None, 0, "F32", row.disk_shape((8, 24)))
    place = parts({"a": row}, {"a": (8, 24)})["a"]
    found = list(hf_read._pieces((), tensor, {((2, 4), (6, 12)): None}, (8, 24), row, place))
    assert found == [((), *needed)]


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    tensors = checkpoint()
    del tensors["net.layer.2.up.bias"], tensors["net.embed.weight"]
    tensors["net.layer.1.up.weight"] = tensors["net.layer.1.up.weight"].T.copy()
    tensors["net.layer.0.up.bias"] = np.arange(24)
    tensors["net.layer.4.up.bias"] = np.zeros(24, np.float32)
    with pytest.raises(UserError) as error:
        read(tmp_path, tensors)
    assert str(error.value).splitlines()[1:-1] == [
        "  missing: net.embed.weight [16, 8]",
        "  misshapen: net.layer.1.up.weight is [8, 24], the model needs [24, 8]",
        "  unsupported dtype: net.layer.0.up.bias is I64; supported: F32, BF16, F16",
        "  missing: net.layer.2.up.bias [24]",
        "  extra: net.layer.4.up.bias [24]",
    ]


def test_buffers_are_ignored_and_other_heads_dropped_aloud(tmp_path):
    tensors = checkpoint() | {"position_ids": np.arange(3), "lm.bias": np.zeros(3, np.float32)}
    _, report = read(tmp_path, tensors)
    assert report.dropped == ["lm.bias"] and not report.new


def test_a_bare_trunk_with_legacy_names_is_recognised_and_the_head_is_new(tmp_path):
    tensors = {
        name.removeprefix("net."): tensor for name, tensor in checkpoint().items() if not name.startswith("out.")
    }
    tensors["embed.gamma"] = tensors.pop("embed.weight")
    params, report = read(tmp_path, tensors, optional=HEAD)
    assert set(report.new) == HEAD and "head" not in params
    np.testing.assert_array_equal(params["embed"]["table"], tensors["embed.gamma"])


def test_a_tensor_with_and_without_the_prefix_is_refused(tmp_path):
    tensors = checkpoint()
    tensors["embed.weight"] = tensors["net.embed.weight"] + 1
    with pytest.raises(
        UserError, match=r"there twice: (embed.weight and net.embed.weight|net.embed.weight and embed.weight)"
    ):
        read(tmp_path, tensors)


def test_half_a_head_is_damage_not_a_new_head(tmp_path):
    tensors = checkpoint()
    del tensors["out.bias"]
    with pytest.raises(UserError, match=r"missing: out.bias \[3\]"):
        read(tmp_path, tensors, optional=HEAD)


def test_a_missing_head_is_refused_unless_it_is_optional(tmp_path):
    tensors = {name: tensor for name, tensor in checkpoint().items() if not name.startswith("out.")}
    with pytest.raises(UserError, match=r"missing: out.weight \[3, 8\]"):
        read(tmp_path, tensors)


def test_a_classifier_of_another_width_is_refused_with_advice_and_reset_on_request(tmp_path):
    tensors = checkpoint() | {"out.weight": np.zeros((5, 8), np.float32), "out.bias": np.zeros(5, np.float32)}
    with pytest.raises(
        UserError, match=r"out.weight is \[5, 8\], the model needs \[3, 8\]; --config.model.reset_head=True"
    ):
        read(tmp_path, tensors, optional=HEAD)
    params, report = read(tmp_path, tensors, optional=HEAD, reset=HEAD)
    assert set(report.new) == HEAD and set(report.dropped) == {"out.weight", "out.bias"} and "head" not in params


def test_of_a_tensor_with_two_names_the_first_that_is_there_is_read(tmp_path):
    table = TABLE | {"head/out/bias": ("out.bias = bias", "C")}
    tensors = checkpoint()
    tensors["bias"] = tensors["out.bias"] + 1
    params, report = read(tmp_path, tensors, table=table)
    np.testing.assert_array_equal(params["head"]["out"]["bias"], tensors["out.bias"])
    del tensors["out.bias"]
    params, report = read(tmp_path, tensors, table=table)
    np.testing.assert_array_equal(params["head"]["out"]["bias"], tensors["bias"])
    assert not report.new and not report.dropped


def test_a_table_that_does_not_cover_the_model_is_a_mistake_of_the_program(tmp_path):
    save_file(checkpoint(), tmp_path / files.SINGLE)
    incomplete = abstract()
    del incomplete["embed"]
    with pytest.raises(ValueError, match="embed/table"):
        load.load(tmp_path, TABLE, incomplete, prefixes=["net."], ignore=[], other=[], legacy={})


TIED = {"lm.weight": "net.embed.weight"}


def test_a_copy_of_a_tied_tensor_is_dropped_without_a_word(tmp_path):
    tensors = checkpoint()
    tensors["lm.weight"] = tensors["net.embed.weight"].copy()
    params, report = read(tmp_path, tensors, tied=TIED)
    np.testing.assert_array_equal(params["embed"]["table"], tensors["net.embed.weight"])
    assert not report.new and not report.dropped


def test_a_tied_tensor_may_be_there_under_the_name_of_the_copy_alone(tmp_path):
    tensors = checkpoint()
    table = tensors["lm.weight"] = tensors.pop("net.embed.weight")
    params, _ = read(tmp_path, tensors, tied=TIED)
    np.testing.assert_array_equal(params["embed"]["table"], table)


def test_a_copy_that_differs_is_refused_with_the_way_to_keep_both(tmp_path):
    tensors = checkpoint()
    tensors["lm.weight"] = tensors["net.embed.weight"] + np.float32(1e-7)
    with pytest.raises(UserError, match=r"lm\.weight differs from net\.embed\.weight.*override\.tied=False"):
        read(tmp_path, tensors, tied=TIED)


def test_what_the_parameter_has_beyond_the_tensor_is_zero(tmp_path):
    tensors = checkpoint()
    tensors["net.embed.weight"] = tensors["net.embed.weight"][:13].copy()
    params, _ = read(tmp_path, tensors, shapes={"embed/table": (13, 8)})
    rows = np.asarray(params["embed"]["table"])
    np.testing.assert_array_equal(rows[:13], tensors["net.embed.weight"])
    assert rows.shape == (16, 8) and not rows[13:].any()
