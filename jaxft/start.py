"""A run from a config that is read already: what main and notebooks begin with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft import registries
from jaxft.config import Config


def start(
    raw: Mapping[str, Any],
    config: Config,
    workdir: str | Path,
    allow: Sequence[str],
    say: Callable[[str], None],
    among: tuple[str, int, int] = ("", 0, -1),
) -> None:
    """Trains as `config` says, which is `raw` parsed, in `workdir`, from its newest checkpoint if there is one.

    `allow` names keys that may differ from those of the run that is there; `among` is what processes.join is told of
    those that train together. Raises UserError and Stopped, as `train`.
    """
    registries.check_names(config)
    # Later: jax takes a second that who mistyped a name need not wait.
    from jaxft import cache, heap, numerics, processes

    processes.join(*among)
    from jaxft.train import train

    heap.keep()
    numerics.self_check()
    cache.compile_cache(workdir)
    train(raw, config, workdir, allow, say)
