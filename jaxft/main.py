"""python -m jaxft.main --config=configs/bert_cls.py[:variant] [--config.section.key=value ...] [--workdir=DIR]"""

import sys

from absl import app, flags

from jaxft import cli, config_file, memory, signals

flags.adopt_module_key_flags(config_file)  # --help lists them
_ALLOW = flags.DEFINE_list("allow_change", [], "Config keys that may differ from the run's, such as train.batch.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0 of several that train together; auto: as the cluster tells."
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "With --coordinator: how many there are.")
_RANK = flags.DEFINE_integer("rank", -1, "With --coordinator: which of them this is, from 0.")


def main() -> None:
    """Parses flags, checks the config and trains; every known failure is one line and an exit code."""
    signals.early()
    told = {"memory_fix": memory.TRAINING_FIX, "stopped": "stopped before anything began"}
    app.run(
        lambda _: cli.guarded(_train, **told),
        flags_parser=lambda argv: cli.guarded(lambda: config_file.parse(argv, "configs/bert_cls.py"), **told),
    )


def _train() -> None:
    from jaxft.config import parse
    from jaxft.start import start

    raw = config_file.CONFIG.value.to_dict()
    config = parse(raw)
    for name in _ignored(config.model.hf, sys.argv):
        cli.say(f"--{name} has no effect: model.hf={config.model.hf!r} brings family, sizes and tokenizer of its own")
    among = (_COORDINATOR.value, _PROCESSES.value, _RANK.value)
    start(raw, config, config_file.workdir(), _ALLOW.value, cli.say, among)


def _ignored(hf: str, argv: list[str]) -> list[str]:
    """What was set by hand and is for a model from scratch only."""
    scratch = ("config.model.name", "config.model.scratch", "config.tokenizer")
    return [name for name in map(config_file.flag_name, argv) if name.startswith(scratch)] if hf else []


if __name__ == "__main__":
    main()
