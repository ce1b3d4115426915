"""Attention by each implementation against the length: seconds and memory, forward and backward.

    python benchmarks/attention.py --json=attention.json

One row, 8 heads of 64, causal, float32, on the machine's first device. The peer is jax.nn.dot_product_attention, as
jax chooses it. All sides of a length are compiled, then run in turn; what needs more than 2 GB of temporary memory is
compiled only. Prints a table of median seconds and of the memory that the compiler reserves beside inputs and outputs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.layers.attention import Where, dense
from jaxft.layers.kernels import chunked

HEADS, SIZE = 8, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MOST = 2e9  # bytes of temporary memory of what is run
MIB = 2**20


def ours(compute: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def function(q: jax.Array, k: jax.Array, v: jax.Array, segment_BL: jax.Array) -> jax.Array:
        return compute(q * SIZE**-0.5, k, v, Where.within(segment_BL, causal=True))

    return function


def peer(q: jax.Array, k: jax.Array, v: jax.Array, segment_BL: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


SIDES = {"dense": ours(dense), "chunked": ours(chunked.attend), "jax.nn": peer}


def compiled(side: Callable[..., jax.Array], inputs: tuple[jax.Array, ...]) -> Any:
    def loss(*inputs: jax.Array) -> jax.Array:
        return jnp.square(side(*inputs)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()


def measure(length: int, repeats: int) -> dict[str, Any]:
    """side -> {"mib", "seconds"}; seconds is None for what is too large to run."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = (*(jax.random.normal(key, (1, length, HEADS, SIZE)) for key in keys), jnp.ones((1, length), jnp.int32))
    steps = {name: compiled(side, inputs) for name, side in SIDES.items()}
    memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps if memory[name] <= MOST}
    for _ in range(repeats + 1):
        for name, seconds in times.items():
            started = time.perf_counter()
            jax.block_until_ready(steps[name](*inputs))
            seconds.append(time.perf_counter() - started)
    return {
        # The first run of each fills caches and pages.
        name: {"mib": memory[name] / MIB, "seconds": statistics.median(times[name][1:]) if name in times else None}
        for name in steps
    }


def table(results: dict[int, dict[str, Any]]) -> str:
    lines = ["| tokens | " + " | ".join(f"{name}, s | {name}, MiB" for name in SIDES) + " | memory, chunked to dense |"]
    lines.append("|---" * (2 * len(SIDES) + 2) + "|")
    for length, sides in results.items():
        cells = [
            f"{'-' if side['seconds'] is None else format(side['seconds'], '.3f')} | {side['mib']:,.0f}"
            for side in sides.values()
        ]
        ratio = sides["chunked"]["mib"] / sides["dense"]["mib"]
        lines.append(f"| {length:,} | {' | '.join(cells)} | {ratio:.2%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="", help="write the numbers to this file as well")
    options = parser.parse_args()
    device = jax.devices()[0]
    results = {}
    for length in options.lengths:
        results[length] = measure(length, options.repeats)
        print(json.dumps({length: results[length]}), flush=True)
    print(f"{device.device_kind}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}\n{table(results)}")
    if options.json:
        given = {"device": device.device_kind, "jax": jax.__version__, "heads": HEADS, "size": SIZE}
        Path(options.json).write_text(
            json.dumps({"given": given, "results": results}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
