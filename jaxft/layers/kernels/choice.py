"""Which computation serves a call of attention: the wish of the config, what each one can do, and what is fast."""

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from jaxft import sharding
from jaxft.layers.kernels import chunked
from jaxft.layers.kernels.splash import LANES
from jaxft.registry import UserError

if TYPE_CHECKING:
    from jaxft.layers.attention import Where

# Scores of a head and a row, up to which the dense computation is chosen: rows of BERT have 512 tokens at most. On a
# CPU the chunked one is faster from there on (docs/results.md); on TPUs and GPUs nothing is measured yet.
SHORT = 512 * 512


@dataclass(frozen=True)
class Machine:
    platform: str  # "cpu", "tpu", "cuda", or what else jax may call one
    capability: float = 0.0  # of an NVIDIA GPU: 8.0 Ampere, 9.0 Hopper

    @classmethod
    def of(cls, device: Any) -> "Machine":
        if device.platform != "gpu":
            return cls(device.platform)
        if "cuda" not in device.client.platform_version.lower():
            return cls("rocm")
        return cls("cuda", float(device.compute_capability))


@dataclass(frozen=True)
class Call:
    """What is known of a call of attention while it is traced."""

    machine: Machine
    dtype: str
    L: int  # queries
    M: int  # keys
    K: int  # head size of queries and keys
    V: int  # and of values
    causal: bool = False
    window: int = 0
    placed: bool = False  # queries stand at chosen places
    softcap: bool = False
    bias: bool = False
    drop: bool = False
    cut: int = 1  # pieces that rows of queries and keys alike are cut into: the mesh's rule of L

    @classmethod
    def of(
        cls,
        q_BLHK: jax.Array,
        k_BMGK: jax.Array,
        v_BMGK: jax.Array,
        where: "Where",
        softcap: float,
        bias: bool,
        drop: bool,
    ) -> "Call":
        active = sharding.active()
        device = jax.devices()[0] if active is None else active.mesh.devices.flat[0]
        placed, cut = where.at_BL is not None, sharding.shards(k_BMGK.shape, "BLGK")[1]
        return cls(
            Machine.of(device),
            q_BLHK.dtype.name,
            q_BLHK.shape[1],
            k_BMGK.shape[1],
            q_BLHK.shape[3],
            v_BMGK.shape[3],
            where.causal,
            where.window,
            placed,
            softcap > 0,
            bias,
            drop,
            cut if placed or cut == sharding.shards(q_BLHK.shape, "BLHK")[1] else 1,
        )


def choose(wish: str, call: Call) -> str:
    """ "ring", "dense", "chunked", "cudnn" or "splash".

    Where rows are cut over devices it is the ring, in which `block` is what the wish decides; but a bias does not
    travel: with one, what is wished for is computed as XLA shares it out, by "auto" the dense computation.
    "auto" takes the dense computation for up to SHORT scores, beyond that the kernel of the platform, where it can do
    what the call asks for (`why_not`), and the chunked computation elsewhere. Another wish is fulfilled; but of a
    kernel's wish, calls with queries at chosen places are left out: the few that the last layer is asked for go by
    "auto". Raises UserError for a kernel that cannot do what is asked.
    """
    if call.cut > 1:
        if reason := needs(wish, call.machine, call.dtype, call.cut):
            raise UserError(f'model.attention="{wish}" {reason}; use "auto"')
        return "ring" if not call.bias else "dense" if wish == "auto" else wish
    if wish in ("dense", "chunked"):
        return wish
    if wish != "auto" and not call.placed:
        if reason := why_not(wish, call):
            raise UserError(f'model.attention="{wish}" {reason}; use "auto"')
        return wish
    if call.L * call.M <= SHORT:
        return "dense"
    return next((kernel for kernel in ("splash", "cudnn") if not why_not(kernel, call)), "chunked")


def why_not(kernel: str, call: Call) -> str:
    """Why "splash" or "cudnn" cannot serve a call; "" where it can."""
    if reason := needs(kernel, call.machine, call.dtype, call.cut):
        return reason
    if call.placed:
        return "has no queries at chosen places"
    if call.bias:
        return "adds no bias to the scores"
    if call.drop:
        return "does not drop attention weights: set attention_dropout=0 in model.scratch or model.override"
    if (call.causal or call.window) and call.L != call.M:
        return f"has no causality and no window between sequences of {call.L} and {call.M} tokens"
    return _splash(call) if kernel == "splash" else _cudnn(call)


def block(wish: str, call: Call) -> int:
    """Queries and keys of a block in the ring: those of two pieces at once, where the dense computation is chosen."""
    L, M = call.L if call.placed else call.L // call.cut, call.M // call.cut
    dense = wish == "dense" or (wish == "auto" and L * M <= SHORT)
    return max(L, M) if dense else chunked.BLOCK


def needs(kernel: str, machine: Machine, dtype: str, cut: int) -> str:
    """What a machine, a dtype or a mesh that cuts rows into `cut` pieces lacks for a kernel; "" where nothing."""
    if kernel in ("splash", "cudnn") and cut > 1:
        return f"needs whole rows, and sharding.activations.L cuts them into {cut} pieces"
    if kernel == "splash":
        if machine.platform != "tpu":
            return f"needs a TPU, and this is a {machine.platform}"
        # Its backward pass would multiply in fewer bits, and who asks for float32 gets it.
        return "" if dtype == "bfloat16" else f"needs model.dtype=bfloat16, not {dtype}"
    if kernel == "cudnn":
        if machine.platform != "cuda" or machine.capability < 8:
            return f"needs an NVIDIA GPU, Ampere or newer, and this is a {machine.platform}"
        return "" if dtype in ("bfloat16", "float16") else f"needs model.dtype=bfloat16, not {dtype}"
    return ""


def _splash(call: Call) -> str:
    for length in (call.L, call.M):
        if length % LANES:
            return f"needs lengths that {LANES} divides, not {length}"
    if max(call.K, call.V) > 256:  # larger ones were never compiled
        return f"needs head sizes up to 256, not {max(call.K, call.V)}"
    return ""


def _cudnn(call: Call) -> str:
    limit = 256 if call.machine.capability >= 9 else 128
    if call.softcap:
        return "has no soft cap of scores"
    if call.K != call.V:
        return f"needs keys and values of one head size, not {call.K} and {call.V}"
    if limit < call.K or call.K % 8:
        return f"needs head sizes up to {limit} that 8 divides, not {call.K}"
    if call.L % 2 or call.M % 2:
        return f"needs even lengths, not {call.L} and {call.M}"
    return ""


_wish: contextvars.ContextVar[str] = contextvars.ContextVar("attention", default="auto")


@contextlib.contextmanager
def wished(name: str) -> Iterator[None]:
    """While tracing inside, attention is computed as `name` says."""
    token = _wish.set(name)
    try:
        yield
    finally:
        _wish.reset(token)


def wish() -> str:
    return _wish.get()
