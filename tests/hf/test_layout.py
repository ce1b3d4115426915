"""Layouts and rows: exact, invertible, and loud about what is neither."""

import numpy as np
import pytest

from jaxft.hf import layout
from jaxft.hf.layout import Row, parse


@pytest.mark.parametrize("text", ["D", "F D -> D F", "A B C -> C A B", "A B C D -> B D A C"])
def test_to_disk_undoes_to_param(text):
    parsed = parse(text)
    sizes = dict(zip("ABCDF", (2, 3, 5, 7, 4), strict=True))
    disk = np.random.default_rng(0).normal(size=[sizes[letter] for letter in parsed.disk])
    param = parsed.to_param(disk)
    assert param.shape == tuple(sizes[letter] for letter in parsed.param)
    np.testing.assert_array_equal(parsed.to_disk(param), disk)
    assert parsed.disk_index(param.shape) == disk.shape


def test_a_slice_of_the_parameter_is_read_from_the_same_place_on_disk():
    parsed = parse("A B C -> C A B")
    disk = np.arange(30).reshape(2, 3, 5)
    wanted = (slice(1, 4), slice(0, 1), slice(2, 3))
    np.testing.assert_array_equal(parsed.to_param(disk[parsed.disk_index(wanted)]), parsed.to_param(disk)[wanted])


@pytest.mark.parametrize("text", ["F D -> D", "D D -> D D", "F D -> D K", "A -> B -> A", "F D -> D F F"])
def test_a_layout_that_cannot_be_inverted_is_refused(text):
    with pytest.raises(ValueError, match="same letters"):
        parse(text)


def test_stacked_axes_name_one_tensor_each():
    row = Row("layer.{N}.expert.{E}.up", parse("F D -> D F"))
    assert row.stacked == ("N", "E")
    assert list(row.tensors((2, 2, 8, 3))) == [
        ((0, 0), "layer.0.expert.0.up"),
        ((0, 1), "layer.0.expert.1.up"),
        ((1, 0), "layer.1.expert.0.up"),
        ((1, 1), "layer.1.expert.1.up"),
    ]
    assert row.disk_shape((2, 2, 8, 3)) == (3, 8)
    with pytest.raises(ValueError, match="does not fit"):
        row.disk_shape((8, 3))


def test_parts_of_a_joined_tensor_follow_each_other_in_the_order_of_the_table():
    table = {
        "q": ("layer.{N}.qkv", "+HK D -> D HK"),
        "k": ("layer.{N}.qkv", "+GK D -> D GK"),
        "v": ("layer.{N}.qkv", "+GK D -> D GK"),
        "out": ("layer.{N}.out", "D HK -> HK D"),
    }
    shapes = {"q": (2, 8, 12), "k": (2, 8, 4), "v": (2, 8, 4), "out": (2, 12, 8)}
    rows = layout.rows(table)
    places = layout.parts(rows, shapes)
    assert {path: (part.start, part.whole) for path, part in places.items()} == {
        "q": (0, (20, 8)),
        "k": (12, (20, 8)),
        "v": (16, (20, 8)),
        "out": (0, (8, 12)),
    }
    disk = np.arange(160).reshape(20, 8)
    whole = tuple(slice(0, n) for n in rows["k"].disk_shape(shapes["k"]))
    np.testing.assert_array_equal(rows["k"].layout.to_param(disk[places["k"].of(rows["k"], whole)]), disk[12:16].T)


def test_rows_that_share_a_tensor_must_be_marked_as_its_parts():
    rows = layout.rows({"a": ("x", "F D -> D F"), "b": ("x", "+F D -> D F")})
    with pytest.raises(ValueError, match="x is the tensor of a, b"):
        layout.parts(rows, {"a": (2, 3), "b": (2, 3)})


def test_stacked_tensors_may_be_numbered_from_one():
    row = layout.rows({"a": ("layers.{N+1}.experts.{E}.w", "F")})["a"]
    assert row.stacked == ("N", "E")
    assert [name for _, name in row.tensors((2, 2, 3))] == [f"layers.{n}.experts.{e}.w" for n in (1, 2) for e in (0, 1)]


@pytest.mark.parametrize("shape", [(1, 1), (16, 33), (50, 7)])
def test_a_transposed_copy_is_exact(shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    out = np.empty(shape[::-1], np.float32)
    layout.copy(out, array.T)
    np.testing.assert_array_equal(out, array.T)


def test_a_tensor_may_have_several_names():
    row = layout.rows({"up": ("layer.{N+1}.up = layers.{N+1}.up", "F D -> D F")})["up"]
    assert list(row.tensors((2, 8, 3))) == [((0,), "layer.1.up"), ((1,), "layer.2.up")]
    assert list(row.copies((2, 8, 3))) == [("layers.1.up", "layer.1.up"), ("layers.2.up", "layer.2.up")]
