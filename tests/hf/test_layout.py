"""Layouts and rows: exact, invertible, and loud about what is neither."""

import numpy as np
import pytest

from jaxft.hf.layout import Row, parse


@pytest.mark.parametrize("text", ["D", "F D -> D F", "A B C -> C A B", "A B C D -> B D A C"])
def test_to_disk_undoes_to_param(text):
    layout = parse(text)
    sizes = dict(zip("ABCDF", (2, 3, 5, 7, 4), strict=True))
    disk = np.random.default_rng(0).normal(size=[sizes[letter] for letter in layout.disk])
    param = layout.to_param(disk)
    assert param.shape == tuple(sizes[letter] for letter in layout.param)
    np.testing.assert_array_equal(layout.to_disk(param), disk)
    assert layout.disk_index(param.shape) == disk.shape


def test_a_slice_of_the_parameter_is_read_from_the_same_place_on_disk():
    layout = parse("A B C -> C A B")
    disk = np.arange(30).reshape(2, 3, 5)
    wanted = (slice(1, 4), slice(0, 1), slice(2, 3))
    np.testing.assert_array_equal(layout.to_param(disk[layout.disk_index(wanted)]), layout.to_param(disk)[wanted])


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
