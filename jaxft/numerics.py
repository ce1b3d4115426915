"""Refuses to train on a jaxlib that computes wrongly.

XLA:CPU of jaxlib 0.10.2 hands reductions to a library that gives wrong sums under vmap (jax#39103) and crashes on
tensors of rank 7 (jax#40412); 0.11.0 still crashes on rank 8 (jax#39257). An empty fusion list cures all three, but XLA
reads its flags once, when its first device appears, so `prepare` runs as soon as jaxft is imported. `self_check` then
proves the wheel, whatever its version.

Importing this module imports neither jax nor numpy.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

from jaxft.registry import UserError

FIXED_IN = (0, 11, 1)
FLAG = "--xla_cpu_experimental_ynn_fusion_type="
REMEDY = f"upgrade (pip install -U 'jax>=0.11.1', Python 3.12 or newer), or set XLA_FLAGS={FLAG}"

_too_late = False


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Adds the curing flag to XLA_FLAGS where jaxlib is older than 0.11.1. A user's own choice of the flag stands."""
    global _too_late
    flags = environ.get("XLA_FLAGS", "")
    if release(jaxlib_version()) >= FIXED_IN or FLAG in flags:
        return
    environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
    # A private name, but of wheels that are out already: newer ones have left this function above.
    bridge = sys.modules.get("jax._src.xla_bridge")
    _too_late = bridge is not None and bridge.backends_are_initialized()


def jaxlib_version() -> str:
    return metadata.version("jaxlib")


def release(version: str) -> tuple[int, ...]:
    """The first three numbers: "0.12.0.1" -> (0, 12, 0), "0.11.1rc2" -> (0, 11, 1)."""
    digits = ("".join(c if c.isdigit() else " " for c in part).split() for part in version.split(".")[:3])
    return tuple(int(found[0]) if found else 0 for found in digits)


def self_check(timeout: float = 120.0) -> None:
    """Compares jit with numpy on this machine's CPU, in a process of its own since a bad wheel crashes.

    Takes a second or two the first time; the pass is remembered per wheel, flags, Python and processor. `timeout` is in
    seconds. Raises UserError naming the jaxlib version and the fix.
    """
    from jaxft import cache

    if _too_late:
        raise UserError(
            f"jaxlib {jaxlib_version()} miscomputes sums on CPUs unless a flag is set before jax starts, and this "
            f"program used jax before it imported jaxft. Import jaxft first, or {REMEDY}"
        )
    passed = cache.private_dir("numerics") / _fingerprint()
    if passed.exists():
        return
    trouble = _run_apart(timeout)
    if trouble:
        raise UserError(f"jaxlib {jaxlib_version()} computes wrongly on this machine: {trouble}. To fix it, {REMEDY}")
    passed.write_text("passed\n")


def _fingerprint() -> str:
    """Changes with everything that may change generated code, and with this file (new checks run once more)."""
    facts = [jaxlib_version(), os.environ.get("XLA_FLAGS", ""), sys.version, platform.platform(), _processor()]
    facts.append(Path(__file__).read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.machine())


def _run_apart(timeout: float) -> str:
    """What went wrong in the child process, or ''. The child prints each case before it runs, so a crash has a name."""
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", "from jaxft import numerics; numerics.check_every_case()"]
    # TPU and GPU plugins are slow to start and may be held by another process: the cases are about the CPU.
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    try:
        child = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"the self-check did not finish in {timeout:.0f} s"
    if child.returncode == 0:
        return ""
    case = (child.stdout.strip().splitlines() or ["start"])[-1]
    if child.returncode < 0:
        return f"case '{case}' crashed with signal {-child.returncode}"
    return f"case '{case}' failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}"


def check_every_case() -> None:
    """Runs the cases in this process. Raises AssertionError with the largest difference."""
    for name, function, arguments, tolerance in _cases():
        print(name, flush=True)
        _check(function, arguments, tolerance)


def _check(function, arguments, tolerance: float) -> None:
    """`function(xp, *arguments)` is written once for numpy and jax.numpy; float64 numpy is the truth."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    truth = function(np, *[np.asarray(x, np.float64) for x in arguments])
    ours = np.asarray(jax.jit(lambda *xs: function(jnp, *xs))(*arguments), np.float64)
    scale = np.abs(truth).max()
    worst = np.abs(ours - truth).max() / scale
    assert worst <= tolerance, f"off by {worst:.2%} of the largest value"  # NaN fails too


def _cases():
    """Name, function of (numpy-like module, arrays), arrays, allowed difference relative to the largest value."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    def vmapped_matvec(xp, m, r):
        if xp is np:
            return ((r @ m.T) ** 2).sum(-1)
        return jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(r)

    def layernorm(xp, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / xp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def softmax(xp, x):
        e = xp.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def product_sum(xp, u, v):
        return xp.sum(u * v, axis=3)

    def bfloat16_dot(xp, a, b):
        return a @ b

    a, b = jnp.asarray(normal(64, 96), jnp.bfloat16), jnp.asarray(normal(96, 32), jnp.bfloat16)
    rank7 = normal(3, 1, 2, 2, 8, 8, 8), normal(3, 1, 2, 2, 8, 8, 8)
    rank8 = normal(3, 1, 2, 2, 2, 8, 8, 4), normal(3, 1, 2, 2, 1, 8, 8, 4)
    # The sizes matter: the wrong code is only chosen above 32,768 rows, the crash needs the axis of length 1.
    return [
        ("sum", lambda xp, x: x.sum(0), (normal(513, 257),), 1e-5),
        ("matrix-vector product under vmap (jax#39103)", vmapped_matvec, (normal(3, 3), normal(32_769, 3)), 1e-5),
        ("layer norm", layernorm, (normal(64, 384),), 1e-5),
        ("softmax", softmax, (normal(64, 384),), 1e-5),
        ("bfloat16 product", bfloat16_dot, (a, b), 2e-2),
        ("reduction of rank 7 (jax#40412)", product_sum, rank7, 1e-5),
        ("reduction of rank 8 (jax#39257)", product_sum, rank8, 1e-5),
    ]
