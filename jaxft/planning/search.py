"""Meshes, remat and micro-batches, tried: each is compiled, and what fits is ranked by what it makes of the chips."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxft.config import Config
from jaxft.registry import UserError

TENSOR = (1, 2, 4, 8, 16)
EXPERT = (8, 16, 64)
REMAT = ("none", "dots", "full")  # the more is computed again, the less is kept
MOST_PIECES = 16  # micro-batches of a step

Told = dict[str, Any]  # figures.figures


def search(
    config: Config, devices: int, slices: int, told_of: Callable[[Config], Told], most: int, say: Callable[[str], None]
) -> list[Told]:
    """The figures of at most `most` compiled steps.

    For each mesh the least that has to be computed again until it fits, then smaller micro-batches. A mesh that the
    config cannot have is said and passed over; its `context` stays. Raises UserError where none can be had.
    """
    tried: list[Told] = []
    refused = ""
    for mesh in meshes(devices, slices, config.mesh.context):
        for remat, pieces in _gentler(config):
            if len(tried) == most:
                return tried
            changed = dataclasses.replace(
                config,
                mesh=dataclasses.replace(config.mesh, **mesh),
                model=dataclasses.replace(config.model, remat=remat),
                train=dataclasses.replace(config.train, accumulate=pieces),
            )
            try:
                told = told_of(changed)
            except UserError as error:
                refused = f"mesh {', '.join(f'{axis}={size}' for axis, size in mesh.items())}: {error}"
                say(f"passed over: {refused}")
                break
            tried.append(told)
            say(f"{described(told)}: {'fits' if told['fits'] else 'does not fit'}")
            if told["fits"]:
                break
    if not tried:
        raise UserError(f"--search: the config can have no mesh of {devices} devices; the last one: {refused}")
    return tried


def meshes(devices: int, slices: int, context: int) -> Iterator[dict[str, int]]:
    """Ways to share out `devices`: slices by data; within them fsdp and tensor, then data alone, then experts."""
    each = devices // slices // context
    for tensor in TENSOR:
        if each % tensor == 0:
            yield {"data": slices, "fsdp": each // tensor, "tensor": tensor, "expert": 1}
    if each > 1:
        yield {"data": slices * each, "fsdp": 1, "tensor": 1, "expert": 1}
    for expert in EXPERT:
        if each % expert == 0 and each > expert:
            yield {"data": slices, "fsdp": each // expert, "tensor": 1, "expert": expert}


def _gentler(config: Config) -> Iterator[tuple[str, int]]:
    """(remat, micro-batches), each with less to keep than the one before."""
    pieces = config.train.accumulate
    yield from ((remat, pieces) for remat in REMAT)
    while pieces < MOST_PIECES and config.train.batch % (2 * pieces) == 0:
        pieces *= 2
        yield REMAT[-1], pieces


def described(told: Mapping[str, Any]) -> str:
    """What was tried, as flags."""
    sizes = " ".join(f"--config.mesh.{axis}={size}" for axis, size in told["mesh"].items())
    return f"{sizes} --config.model.remat={told['remat']} --config.train.accumulate={told['accumulate']}"


def ranked(tried: Sequence[Told], rate: Callable[[Told], float]) -> list[Told]:
    """What fits, the best first: by `rate`, then by the room that is left."""
    return sorted((told for told in tried if told["fits"]), key=lambda told: (-rate(told), told["total"]))
