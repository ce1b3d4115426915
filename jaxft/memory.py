"""What a compiled step needs, said before it runs and compared with what there is."""

import os
import resource
from typing import Any

import jax

from jaxft.registry import UserError

GIB = 2**30


def describe(compiled: Any, seconds: float) -> str:
    """One line: memory per device and FLOPs of a step, read from the compiled step itself."""
    stats = compiled.memory_analysis()
    flops = compiled.cost_analysis()["flops"]
    return (
        f"compiled in {seconds:.1f} s: {stats.argument_size_in_bytes / GIB:.2f} GiB of state and batch, "
        f"{stats.temp_size_in_bytes / GIB:.2f} GiB of temporaries, {flops:.3g} FLOPs a step on each device"
    )


def check(compiled: Any, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError (exit 1) when the step cannot fit its devices, instead of dying in the middle of it."""
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
        raise out_of_memory(f"a step needs {needed / GIB:.2f} GiB, {available / GIB:.2f} GiB are available")


def out_of_memory(what: str) -> UserError:
    return UserError(
        f"out of memory: {what}. Set one of: --config.train.batch lower; --config.train.accumulate higher (the same "
        "batch in pieces); --config.model.remat=full (recompute instead of keep); --config.mesh.fsdp higher (share the "
        "state between devices). The last checkpoint is intact",
        code=1,
    )


def _host_memory() -> int:
    """Bytes that this process may still take: free memory, or what RLIMIT_AS leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with open("/proc/self/statm", encoding="ascii") as numbers:
            used = int(numbers.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        used = 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else max(0, min(free, limit - used))
