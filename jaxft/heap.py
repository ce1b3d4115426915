"""Memory that a CPU step has used stays with the process, for the next step.

XLA:CPU takes all temporaries of a step in one piece and frees them at its end. By default glibc returns a piece of that
size to the system at once, and the next step pays for every page anew: 120,000 page faults a step for a 6 x 384 BERT,
a fifth of its CPU time (docs/log.md). Accelerators have allocators of their own: where one will do the steps, the heap
is left as it is, since their hosts would only wait for its one arena.
"""

import ctypes
import glob
import importlib.util
import os
import platform
from collections.abc import Mapping
from importlib import metadata

# malloc.h. No part of the heap is given back, no piece is mapped apart, and there is one arena, since a second one is
# limited to 64 MiB and maps what exceeds it.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}

# NVIDIA, AMD and TPU devices as Linux shows them.
_DEVICES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep(environ: Mapping[str, str] = os.environ) -> bool:
    """Settles this for the process; call before threads start, so before jax does. False where it is left alone.

    Left alone: a C library other than glibc, one that the user has tuned by MALLOC_* or GLIBC_TUNABLES, and a process
    that will compute on an accelerator.
    """
    if not on_cpu(environ):
        return False
    tuned = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in _SETTINGS.values()])


def on_cpu(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether jax will choose the CPU: told to by JAX_PLATFORMS, or without a plugin or a device for anything else."""
    chosen = environ.get("JAX_PLATFORMS", "")
    if chosen:
        return chosen.split(",")[0] == "cpu"
    plugin = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return not (plugin and any(map(glob.glob, _DEVICES)))
