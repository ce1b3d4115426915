"""How long a step takes at the least, by what its chips can do: arithmetic, memory, links, and the slower network.

Each of the four as if it had the machine to itself. The step takes at least as long as the longest, behind which all
others may hide, and no longer than their sum but for what nobody counts here (latencies, small operations). Ring
algorithms; a link of a torus is used both ways. Source: "How to Scale Your Model" (jax-ml.github.io/scaling-book),
chapters 1 to 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxft.chips import Chip
from jaxft.planning.measure import Step
from jaxft.planning.traffic import Collective


@dataclass(frozen=True)
class Times:
    """Seconds of a step; None where the chip's figure is not known."""

    compute: float
    memory: float | None
    links: float | None
    network: float | None

    @property
    def parts(self) -> dict[str, float]:
        named = {"compute": self.compute, "memory": self.memory, "links": self.links, "network": self.network}
        return {name: seconds for name, seconds in named.items() if seconds is not None}

    @property
    def least(self) -> float:
        return max(self.parts.values())

    @property
    def most(self) -> float:
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.parts, key=self.parts.__getitem__)


def times(step: Step, chip: Chip, slices: Sequence[int]) -> Times:
    """`slices` says for each device of the mesh, in its order, which slice it is in."""
    links = network = 0.0
    for one in step.collectives:
        across = _slices(one, slices)
        within = one.size // across
        if across > 1:
            network += one.times * _between(one, across, within) / (chip.network or 1)
        if within > 1:
            links += one.times * seconds(one, within, chip.link or 1)
    # At least what the model takes, where loops of the program do not tell how often they turn.
    flops = step.flops if step.flops_known else max(step.flops, step.model_flops / len(slices))
    return Times(
        flops / chip.flops,
        step.memory_bytes / chip.bandwidth if chip.bandwidth else None,
        links if chip.link else None,
        network if chip.network else None,
    )


def seconds(one: Collective, n: int, link: float) -> float:
    """Of one collective among `n` devices of a ring, whose links carry `link` bytes/s each way."""
    if one.kind == "collective-permute":
        return one.bytes / link
    both = 2 * link
    if one.kind == "all-gather":
        return one.bytes * (n - 1) / both
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        return one.bytes * n / 4 / both  # a quarter of all has to pass each link: the shortest way is n / 4 on average
    return one.bytes * (n - 1) / n / both * (2 if one.kind == "all-reduce" else 1)


def _slices(one: Collective, slices: Sequence[int]) -> int:
    """Over how many slices the devices of a group are spread."""
    return max((len({slices[device] for device in group}) for group in one.groups), default=1)


def _between(one: Collective, across: int, within: int) -> float:
    """Bytes that a device sends over the network, if what can be done within a slice first is done there."""
    if one.kind == "collective-permute":
        return one.bytes
    share = (across - 1) / across
    if one.kind == "all-gather":
        return one.bytes * (across - 1)
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        return one.bytes * share
    return one.bytes / within * share * (2 if one.kind == "all-reduce" else 1)
