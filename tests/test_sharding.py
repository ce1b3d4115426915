import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxft import layers, sharding
from jaxft.registry import UserError

ONE = dict(data=1, fsdp=1, tensor=1, context=1, expert=1)


def mesh(**sizes):
    return sharding.make_mesh(ONE | sizes)


def test_minus_one_takes_what_is_left():
    assert dict(mesh(data=-1, tensor=2).shape) == ONE | {"data": 4, "tensor": 2}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=3, fsdp=-1), dict(data=-1, fsdp=-1), dict(data=0)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(UserError, match="mesh: data="):
        mesh(**sizes)


class Gpu:
    """A device of a node, as jax describes GPUs: its slice is its node."""

    platform, device_kind = "gpu", "H100"

    def __init__(self, number, node):
        self.id, self.process_index, self.slice_index = number, number, node


@pytest.mark.parametrize("sizes, crossing", [(dict(data=2, fsdp=-1), 0), (dict(fsdp=-1, tensor=2), 1)])
def test_slices_and_nodes_share_out_data_then_fsdp(sizes, crossing):
    devices = [Gpu(number, number // 4) for number in range(8)]
    on = sharding.make_mesh(ONE | sizes, devices)
    assert dict(on.shape)["fsdp"] == 4 and sharding.slices(devices) == 2
    nodes = np.vectorize(lambda device: device.slice_index)(on.devices)
    for axis in range(nodes.ndim):
        first, second = np.array_split(nodes, 2, axis) if nodes.shape[axis] > 1 else (nodes, nodes)
        assert ((first == 0).all() and (second == 1).all()) == (axis == crossing)


def test_slices_that_neither_data_nor_fsdp_can_span_are_refused():
    devices = [Gpu(number, number // 4) for number in range(8)]
    with pytest.raises(UserError, match=r"in 2 slices, joined by a slower network.*multiple of 2"):
        sharding.make_mesh(ONE | dict(tensor=8), devices)


def test_matrices_follow_the_rules_and_vectors_are_replicated():
    rules = dict(D="fsdp", F="tensor")
    on = mesh(fsdp=4, tensor=2)
    assert sharding.parameter_sharding((8, 16), ("D", "F"), rules, on).spec == P("fsdp", "tensor")
    assert sharding.parameter_sharding((3, 8, 16), ("N", "D", "F"), rules, on).spec == P(None, "fsdp", "tensor")
    assert sharding.parameter_sharding((16,), ("F",), rules, on).spec == P()
    assert sharding.parameter_sharding((3, 16), ("N", "F"), rules, on).spec == P()


def test_what_does_not_divide_stays_whole_and_is_reported():
    on = mesh(fsdp=4, tensor=2)
    rules = dict(V="tensor", D="fsdp")
    assert sharding.spec((99, 8), ("V", "D"), rules, on) == P(None, "fsdp")
    assert sharding.undivided((99, 8), ("V", "D"), rules, on) == ["V=99 by tensor=2"]


def test_two_letters_never_claim_one_mesh_axis():
    assert sharding.spec((8, 8), ("D", "P"), dict(D="fsdp", P="fsdp"), mesh(fsdp=8)) == P("fsdp", None)


def test_constrain_pins_activations_by_letter_only_inside_the_context():
    on = mesh(data=4, tensor=2)
    x = jnp.ones((8, 4, 6))

    def pinned(x):
        with sharding.activations(on, dict(B=("data", "fsdp"), H="tensor")):
            return sharding.constrain(x, "BHK")

    assert jax.jit(pinned)(x).sharding.spec == P("data", "tensor")
    assert sharding.constrain(x, "BHK") is x


def test_a_rule_for_an_axis_that_no_mesh_has_is_refused():
    with pytest.raises(UserError, match=r"sharding.params.D='modle'"):
        sharding.check_rules(dict(D="modle"), dict(B="data"))


@pytest.mark.parametrize("letter", ["KH", "d", "Z", "DF"])
def test_a_rule_for_a_letter_that_no_dimension_has_is_refused(letter):
    sharding.check_rules(dict(HK="tensor"), dict(B=None, H="tensor"))
    for which, rules in {
        "params": ({letter: "fsdp"}, {"B": "data"}),
        "activations": ({}, {"B": "data", letter: None}),
    }.items():
        with pytest.raises(
            UserError, match=rf"sharding\.{which}\.{letter}=.*no dimension has the letter.*letters: B, L"
        ):
            sharding.check_rules(*rules)


def test_who_gets_which_rows_must_be_said():
    with pytest.raises(UserError, match=r"sharding\.activations has no rule for B.*B=None"):
        sharding.check_rules(dict(D="fsdp"), dict(F="tensor"))
    assert sharding.batch_shards(mesh(data=8), dict(B=None)) == 1


def test_the_letters_are_those_of_the_legend():
    legend = [line for line in layers.__doc__.splitlines() if line.startswith("    ")]
    assert set(re.findall(r"\b[A-Z]{1,2}\b", " ".join(legend))) == set(sharding.LETTERS)


def test_the_axes_that_rules_use():
    assert sharding.axes_of(dict(D="fsdp"), dict(B=("data", "fsdp"), L=None)) == {"data", "fsdp"}


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def blocks(monkeypatch, each, rank, rows=("data", "fsdp"), devices=8, **sizes):
    """batch_blocks of process `rank` of those that have `each` of the devices."""
    on, rules = sharding.make_mesh(ONE | sizes, jax.devices()[:devices]), dict(B=rows)
    where = sharding.batch_sharding(on, rules)

    class Placed:
        def devices_indices_map(self, shape):
            found = where.devices_indices_map(shape).values()
            return {Device(number // each): index for number, index in enumerate(found)}

    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh, rules: Placed())
    monkeypatch.setattr(jax, "process_index", lambda: rank)
    try:
        return sharding.batch_blocks(on, rules)
    finally:
        monkeypatch.undo()


def test_a_process_has_the_rows_of_its_devices(monkeypatch):
    assert [blocks(monkeypatch, 4, rank, data=8) for rank in (0, 1)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [blocks(monkeypatch, 2, rank, data=4, tensor=2) for rank in range(4)] == [(0,), (1,), (2,), (3,)]
    assert [blocks(monkeypatch, 2, rank, data=2, tensor=4) for rank in range(4)] == [(0,), (0,), (1,), (1,)]
    assert [blocks(monkeypatch, 1, rank, tensor=8) for rank in (0, 7)] == [(0,), (0,)]
    across = dict(rows=("fsdp", "data"), data=2, fsdp=4)
    assert [blocks(monkeypatch, 4, rank, **across) for rank in (0, 1)] == [(0, 2, 4, 6), (1, 3, 5, 7)]


def test_processes_that_share_some_of_their_rows_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"mesh: data=3, tensor=2: processes of 3 devices .* product 2 of the axes"):
        blocks(monkeypatch, 3, 0, devices=6, data=3, tensor=2)
