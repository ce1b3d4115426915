"""What a compiled step needs, said before it runs and compared with what there is."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.registry import UserError

GIB = 2**30
TRAINING_FIX = (
    "Set one of: --config.train.batch lower; --config.train.accumulate higher (the same batch in pieces); "
    "--config.model.remat=full (recompute instead of keep); --config.mesh.fsdp higher (share the state between "
    "devices). The last checkpoint is intact"
)


def describe(compiled: Any, seconds: float) -> str:
    """One line: memory per device and FLOPs of a step, read from the compiled step itself."""
    flops = compiled.cost_analysis()["flops"]
    return (
        f"compiled in {seconds:.1f} s: {_largest(compiled.memory_analysis())}, {flops:.3g} FLOPs a step on each device"
    )


def _largest(stats: Any) -> str:
    return (
        f"{stats.argument_size_in_bytes / GIB:.2f} GiB of state and batch, "
        f"{stats.temp_size_in_bytes / GIB:.2f} GiB of temporaries"
    )


def check(compiled: Any, mesh: Any) -> None:
    """Raises UserError (exit 1) when the step cannot fit its devices, instead of dying in the middle of it."""
    import jax

    stats = compiled.memory_analysis()
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    device = local[0]
    per_device = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    if device.platform == "cpu":
        needed, available = stats.temp_size_in_bytes * len(local), _host_memory()
    else:
        limits = device.memory_stats()
        if not limits:
            return
        needed, available = per_device, limits["bytes_limit"]
    if needed > available:
        raise out_of_memory(
            f"a step needs {needed / GIB:.2f} GiB, {available / GIB:.2f} GiB are available; each device would hold "
            f"{_largest(stats)}",
            TRAINING_FIX,
        )


def in_use(mesh: Any) -> dict[str, float]:
    """GiB on the fullest device of this process, now and at most so far; nothing where devices do not tell (CPUs)."""
    told = [stats for device in mesh.local_devices if (stats := device.memory_stats())]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {name: max(stats[key] for stats in told) / GIB for name, key in names.items() if told}


def is_short(error: BaseException) -> bool:
    """Whether `error` says that the host or a device had no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def explained(error: BaseException, fix: str) -> UserError:
    """The message about such an error."""
    return out_of_memory(next(iter(str(error).splitlines()), "the host has none left"), fix)


def out_of_memory(what: str, fix: str) -> UserError:
    return UserError(f"out of memory: {what}. {fix}", code=1)


def _host_memory() -> int:
    """Bytes that this process may still take: free memory, or what RLIMIT_AS or a control group leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with open("/proc/self/statm", encoding="ascii") as numbers:
            used = int(numbers.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        used = 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    room = [limit - used] if limit != resource.RLIM_INFINITY else []
    return max(0, min(free, *room, *_room_in_groups()))


GROUPS = Path("/sys/fs/cgroup")
# Version of control groups -> limit, use, and the lines of memory.stat that tell how much of the use is file cache,
# which the kernel gives up before anybody runs out of memory.
_GROUP_FILES = {
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def _room_in_groups(listed: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes that each control group around this process (container, Slurm job, systemd unit) still allows."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, version = (GROUPS / "memory", 1) if controllers else (GROUPS, 2)
        group = root / inside.strip("/")  # in a container the path may be the host's: then only the root is there
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _room(folder, *_GROUP_FILES[version])


def _room(folder: Path, limit: str, use: str, cache: tuple[str, ...]) -> Iterator[int]:
    try:
        taken = int((folder / use).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield int((folder / limit).read_text()) - taken + sum(int(stat[name]) for name in cache)
    except (OSError, ValueError, KeyError):  # no such group, or no limit: "max"
        return
