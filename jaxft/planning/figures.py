"""All that is known of a compiled step on a machine, as JSON: what the table shows, and programs read."""

import dataclasses
from typing import Any

from jaxft.config import Config
from jaxft.planning import advice, roofline
from jaxft.planning.machine import Machine
from jaxft.planning.measure import Step


def figures(config: Config, step: Step, machine: Machine) -> dict[str, Any]:
    """Bytes and FLOPs are of one device and one step, but for model_flops, which are of all devices.

    Without seconds and mfu where the chip is not known, or the compiler found no room; with `advice` where it does not
    fit.
    """
    plain = {field.name: getattr(step, field.name) for field in dataclasses.fields(step) if field.name != "collectives"}
    told = {
        "machine": machine.name,
        "device_kind": machine.devices[0].device_kind,
        "devices": len(machine.devices),
        "slices": machine.slices,
        "chip": dataclasses.asdict(machine.chip) if machine.chip else None,
        "remat": config.model.remat,
        "batch": config.train.batch,
        "accumulate": config.train.accumulate,
        **plain,
        "collectives": _collectives(step),
        "fits": fits(step, machine),
    }
    if machine.limit and not told["fits"]:
        told["advice"] = advice.advice(config, step, machine.limit)
    if machine.chip and not step.too_many:
        times = roofline.times(step, machine.chip, machine.slice_of)
        told["seconds_of"], told["bound"] = times.parts, times.bound
        told["seconds_at_least"], told["seconds_without_overlap"] = times.least, times.most
        told["mfu_at_most"] = step.model_flops / (len(machine.devices) * machine.chip.flops * times.least)
    return told


def fits(step: Step, machine: Machine) -> bool:
    return not step.too_many and (machine.limit is None or step.total <= machine.limit)


def rate(told: dict[str, Any]) -> float:
    """What a search makes as large as it can: tokens a second; where the chip is not known tokens a FLOP."""
    return told["tokens"] / (told.get("seconds_at_least") or told["flops"])


def _collectives(step: Step) -> list[dict[str, Any]]:
    """By kind and by how many devices take part: how many, and what a device gives and sends."""
    groups: dict[tuple[str, int], list[float]] = {}
    for one in step.collectives:
        counted = groups.setdefault((one.kind, one.size), [0, 0.0, 0.0])
        for i, value in enumerate((one.times, one.times * one.bytes, one.times * one.sent)):
            counted[i] += value
    return [
        {"kind": kind, "devices": size, "count": int(count), "bytes": given, "bytes_sent": sent}
        for (kind, size), (count, given, sent) in sorted(groups.items())
    ]
