"""Figures of a step, turned into seconds, into advice, and into a ranking."""

import dataclasses

import pytest

from configs.bert_cls import get_config
from jaxft.chips import GIB, Chip
from jaxft.config import parse
from jaxft.planning import advice, roofline, search
from jaxft.planning.measure import Step
from jaxft.planning.traffic import Collective
from jaxft.registry import UserError

CHIP = Chip(flops=100e12, memory=16 * GIB, bandwidth=1e12, link=50e9, network=5e9)
CONFIG = parse(get_config().to_dict())
STEP = Step(
    mesh={"data": 2, "fsdp": 4, "tensor": 1, "context": 1, "expert": 1},
    parameters=2 * GIB,
    optimizer=4 * GIB,
    other_state=0,
    host=0,
    batch_bytes=0,
    compile_seconds=1.0,
    tokens=1000,
    flops=1e12,
    flops_known=True,
    model_flops=6e12,
    total=18 * GIB,
    unsharded=(),
    activations=8 * GIB,
    temporaries=4 * GIB,
    memory_bytes=20e9,
)


def collective(kind, devices, size=1e9):
    groups = tuple((a, b) for a in devices for b in devices if a < b) if kind == "collective-permute" else (devices,)
    return Collective(kind, size, groups, 1, "", (1,))


def seconds(*collectives, slices=(0,) * 8):
    return roofline.times(dataclasses.replace(STEP, collectives=collectives), CHIP, slices)


def test_compute_and_memory_are_what_the_chip_can_do():
    times = seconds()
    assert times.parts == {"compute": 0.01, "memory": 0.02, "links": 0.0, "network": 0.0}
    assert (times.least, times.most, times.bound) == (0.02, 0.03, "memory")


@pytest.mark.parametrize(
    ("kind", "gigabytes"),  # that pass a link of a ring of four, both ways together
    [("all-gather", 3), ("reduce-scatter", 3 / 4), ("all-reduce", 3 / 2), ("all-to-all", 1)],
)
def test_a_ring_of_links_carries_both_ways(kind, gigabytes):
    assert seconds(collective(kind, (0, 1, 2, 3))).links == pytest.approx(gigabytes * 1e9 / 100e9)


def test_a_step_to_a_neighbour_goes_one_way():
    assert seconds(collective("collective-permute", (0, 1))).links == pytest.approx(1e9 / 50e9)


def test_between_slices_only_what_each_has_summed_up_passes_the_network():
    times = seconds(collective("all-reduce", tuple(range(8))), slices=(0,) * 4 + (1,) * 4)
    assert times.network == pytest.approx(2 * (1e9 / 4) * (1 / 2) / 5e9)
    assert times.links == pytest.approx(2 * 1e9 * (3 / 4) / 100e9)


def test_a_loop_without_known_turns_takes_at_least_what_the_model_does():
    step = dataclasses.replace(STEP, flops=1e9, flops_known=False)
    assert roofline.times(step, CHIP, (0,) * 8).compute == pytest.approx(6e12 / 8 / 100e12)


def test_what_is_not_known_of_a_chip_gives_no_time():
    times = roofline.times(STEP, Chip(flops=1e12), (0,) * 8)
    assert times.parts == {"compute": 1.0}


def test_advice_says_how_many_bytes_are_too_many_and_what_each_knob_saves_the_most_first():
    first, *knobs = advice.advice(CONFIG, STEP, 16 * GIB)
    assert first == f"{2 * GIB:,} bytes (2.00 GiB) too many on each device"
    saved = [float(knob.split()[-2]) for knob in knobs]
    assert saved == sorted(saved, reverse=True)
    text = "\n".join(knobs)
    assert "mesh.data=1, mesh.fsdp=8 (the state is shared out over all of them): saves 3.00 GiB" in text
    assert (
        "optim.moments='bfloat16': saves up to 2.00 GiB" in text
        and "optim.moments='8bit': saves up to 2.99 GiB" in text
    )
    assert "train.offload=True" in text and "model.remat='full'" in text and "train.ema=0.0" in text
    assert "train.accumulate" not in text, "a row on each device is the least"


def test_advice_of_micro_batches_is_as_many_as_it_takes():
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, batch=64))
    assert "train.accumulate=2 (the same batch in 2 pieces): saves up to 4.00 GiB" in str(
        advice.advice(config, STEP, 16 * GIB)
    )
    assert "train.accumulate=8 (" in str(advice.advice(config, dataclasses.replace(STEP, total=23 * GIB), 16 * GIB))


def tried(limit, **refuse):
    """What a search tries when a device of fsdp=n holds 64 / n, and with more that is computed again less."""
    seen = []

    def told_of(config):
        mesh = dataclasses.asdict(config.mesh)
        if any(mesh[axis] == size for axis, size in refuse.items()):
            raise UserError(f"no {refuse}")
        size = 64 / mesh["fsdp"] + {"none": 8, "dots": 4, "full": 2}[config.model.remat] / config.train.accumulate
        told = {"mesh": mesh, "remat": config.model.remat, "accumulate": config.train.accumulate}
        return told | {"total": size, "fits": size <= limit, "seconds": size}

    found = search.search(CONFIG, 8, 1, told_of, 40, seen.append)
    return found, seen


def test_a_search_computes_no_more_again_than_it_has_to():
    found, _ = tried(limit=12)
    first = [told for told in found if told["mesh"]["fsdp"] == 8 and told["mesh"]["expert"] == 1]
    assert [told["remat"] for told in first] == ["none", "dots"] and [told["fits"] for told in first] == [False, True]


def test_a_search_takes_smaller_micro_batches_when_all_is_computed_again():
    found, _ = tried(limit=9)
    first = [told for told in found if told["mesh"]["fsdp"] == 8]
    assert [told["accumulate"] for told in first][-1] == 2 and first[-1]["fits"]


def test_a_search_passes_over_what_the_config_cannot_have_and_ranks_what_fits():
    found, said = tried(limit=100, tensor=2)
    assert any(line.startswith("passed over: mesh data=1, fsdp=4, tensor=2") for line in said)
    assert all(told["mesh"]["tensor"] != 2 for told in found)
    best = search.ranked(found, lambda told: -told["seconds"])
    assert [told["total"] for told in best] == sorted(told["total"] for told in best)
    with pytest.raises(UserError, match="can have no mesh of 8 devices"):
        tried(limit=100, context=1)


def test_slices_share_out_data_alone():
    assert all(mesh["data"] % 2 == 0 for mesh in search.meshes(16, 2, 1))
    products = [mesh["data"] * mesh["fsdp"] * mesh["tensor"] * mesh["expert"] for mesh in search.meshes(16, 2, 1)]
    assert set(products) == {16}
