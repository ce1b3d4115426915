"""python -m jaxft.plan --config=FILE[:variant] --topology=v5p:8x8x8 [--slices=N] [--search=N] [--json=FILE]

Compiles the train step of a config for machines that need not be there, and tells what a device would hold, compute
and send, how long a step takes at the least, and what to change where it does not fit. No data are read, and of a
checkpoint config.json is enough. --devices=N instead of --topology: for this machine.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from jaxft import atomic, cli, config_file
from jaxft.registry import UserError

if TYPE_CHECKING:
    from jaxft.planning.machine import Machine

flags.adopt_module_key_flags(config_file)  # --help lists them
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU slice, such as v5e:2x4 or v5p:8x8x8, or a machine type: v5p-64.")
_SLICES = flags.DEFINE_integer("slices", 1, "With --topology: slices of it, joined by the data centre's network.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Instead of --topology: devices of this machine; of CPUs any number.")
_SEARCH = flags.DEFINE_integer("search", 0, "Try meshes, remat and micro-batches: at most so many compiles.")
_JSON = flags.DEFINE_string("json", "", "File for all figures; - for stdout, which then has nothing else.")


def main() -> None:
    """Parses flags, checks the config and plans; every known failure is one message and an exit code."""
    app.run(
        lambda _: cli.guarded(_plan),
        flags_parser=lambda argv: cli.guarded(lambda: config_file.parse(argv, "configs/bert_cls.py")),
    )


def _plan() -> None:
    from jaxft import registries
    from jaxft.config import parse

    config = parse(config_file.CONFIG.value.to_dict())
    registries.check_names(config)
    if _SEARCH.value < 0:
        raise UserError(f"--search={_SEARCH.value} must be 1 or more: how many steps to compile")
    if _JSON.value not in ("", "-"):
        cli.check_output(Path(_JSON.value), flag="--json")
    machine = _machine(_TOPOLOGY.value, _SLICES.value, _DEVICES.value)
    plan(config, machine, _SEARCH.value, (lambda _: None) if _JSON.value == "-" else cli.say, _JSON.value)


def _machine(name: str, slices: int, devices: int) -> "Machine":
    """What the flags name. Sets what must be set before jax is imported. Raises UserError."""
    from jaxft.planning import topology

    if bool(name) == bool(devices):
        raise UserError("name one of --topology, such as v5e:2x4, and --devices, such as 8")
    if slices < 1 or devices < 0 or (slices > 1 and devices):
        raise UserError(f"--slices={slices}, --devices={devices}: 1 or more; slices are of a --topology")
    if name:
        name = topology.named(name)
        topology.prepare()
    else:  # has no effect on accelerators
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    from jaxft.planning import machine

    return machine.of_topology(name, slices) if name else machine.of_this(devices)


def plan(config: Any, machine: "Machine", tries: int, say: Callable[[str], None], output: str) -> None:
    """Says what the step of `config` needs of `machine`; with `tries` the best of so many, with other meshes.

    `output`: file for the figures, "-" for stdout, "" for none. Raises UserError (exit 1) for what does not fit.
    """
    from jaxft.hf import hub
    from jaxft.planning import figures, search, table
    from jaxft.planning.measure import measure

    folder = hub.resolve(config.model.hf, weights=False) if config.model.hf else None
    told_of = functools.partial(_told, measure=measure, figures=figures.figures, machine=machine, folder=folder)
    if tries:
        tried = search.search(config, len(machine.devices), machine.slices, told_of, tries, say)
        found = search.ranked(tried, figures.rate)
        for place, told in enumerate(found, 1):
            say(f"{place}. {search.described(told)}: {table.verdict(told)}")
        found = found or tried
    else:
        found = [told_of(config)]
    _write(found if tries else found[0], output)
    for line in table.lines(found[0]):
        say(line)
    if not found[0]["fits"]:
        raise UserError(f"does not fit {machine.name}: " + "\n  ".join(found[0]["advice"]), code=1)


def _told(config: Any, *, measure: Any, figures: Any, machine: "Machine", folder: Path | None) -> dict[str, Any]:
    return figures(config, measure(config, machine.devices, folder), machine)


def _write(found: Any, output: str) -> None:
    text = json.dumps(found, indent=1)
    if output == "-":
        print(text)
    elif output:
        with atomic.file(Path(output)) as draft:
            draft.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
