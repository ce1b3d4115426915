"""Memory that a CPU step has used stays with the process, for the next step.

XLA:CPU takes all temporaries of a step in one piece and frees them at its end. By default glibc returns a piece of that
size to the system at once, and the next step pays for every page anew: 120,000 page faults a step for a 6 x 384 BERT,
a fifth of its CPU time (docs/log.md). Accelerators have allocators of their own and do not come here.
"""

import ctypes
import os
import platform
from collections.abc import Mapping

# malloc.h. No part of the heap is given back, no piece is mapped apart, and there is one arena, since a second one is
# limited to 64 MiB and maps what exceeds it.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep(environ: Mapping[str, str] = os.environ) -> bool:
    """Settles this for the process; call before threads start. False where it is left alone.

    Left alone: a C library other than glibc, and one that the user has tuned by MALLOC_* or GLIBC_TUNABLES.
    """
    tuned = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in _SETTINGS.values()])
