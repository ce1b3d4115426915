"""The flags of verbs that read a config file: --config=FILE[:VARIANT], --config.section.key=value, --workdir."""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import FlagOrderError

from jaxft import remote
from jaxft.registry import UserError, nearest

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and variant: path[:variant].")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder or gs:// URL to write; by default runs/<config name>.")


def workdir() -> str | Path:
    """A path, or a URL as it stands."""
    return remote.place(WORKDIR.value or Path("runs") / config_name())


def config_name() -> str:
    """configs/bert_cls.py:sst2 -> bert_cls-sst2."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(filter(None, (Path(path).stem, variant.replace("/", "_"))))


def parse(argv: list[str], example: str) -> list[str]:
    """Sets the flags. Raises UserError for a mistake in them, a config file that cannot be used among them.

    `example`: a config file that the verb takes.
    """
    try:
        rest = flags.FLAGS(argv)
        CONFIG.value.to_dict()  # a file that could not be read fails here, at its first use
    # What the libraries raise for one mistake or another; none of their messages says all that is needed.
    except (flags.Error, OSError, ImportError, SyntaxError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_explained(argv, error, example)) from error
    if rest[1:]:
        raise UserError(f"{rest[1]!r}: no such argument; what is set is written --flag=value")
    return rest


def _explained(argv: list[str], error: Exception, example: str) -> str:
    """One line that says what is wrong with the flags `argv`, which failed with `error`."""
    given = _given(argv, "config")
    if given is None:
        return f"--config is missing; for example --config={example}"
    path = Path(given.partition(":")[0])
    if not path.is_file():
        return _no_file(path)
    if isinstance(error, FlagOrderError):
        return f"{error}; put --config=FILE first, whole sections next, their keys after them"
    if isinstance(error, SyntaxError):
        return f"--config={given}: {error.filename}:{error.lineno}: {error.msg}"
    last = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
    if "Error whilst parsing config file" in str(error) or isinstance(error, ImportError):
        return f"--config={given}: {last}"
    config = flags.FLAGS["config"].parser.parse(given)
    wrong = (_wrong_key(name, config) for name in map(flag_name, argv) if name.startswith("config."))
    return next(filter(None, wrong), last)


def flag_name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0]


def _given(argv: list[str], name: str) -> str | None:
    """The last value of --name=value or --name value."""
    value = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument.startswith("-") and flag_name(argument) == name:
            value = argument.partition("=")[2] if "=" in argument else following
    return value


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"--config={path}: no folder {path.parent} in {Path.cwd()}; configs/ is part of the source checkout"
    near = nearest(path.name, [file.name for file in path.parent.glob("*.py")])
    return f"--config={path}: no such file in {path.parent.absolute()}{near}"


def _wrong_key(name: str, here: Any) -> str:
    """What is wrong with the keys of `name` ("config.train.batch"), from the config `here` on; "" for nothing."""
    at, *keys = name.split(".")
    for key in keys:
        if not hasattr(here, "keys"):
            return f"--{name}: {at} is a value ({here!r}) and has no keys"
        if key not in here:
            return f"--{name}: {at} has no key {key!r}; keys: {', '.join(here.keys()) or 'none'}{nearest(key, here)}"
        at, here = f"{at}.{key}", here[key]
    return ""
