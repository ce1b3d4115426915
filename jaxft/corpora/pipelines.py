"""How a Beam pipeline begins and ends: options that Beam refuses, and mistakes of the user that a worker found.

Beam wraps what a worker raises, by runner in another way, and logs it with its traceback before.
"""

import contextlib
import io
import logging
import re
import shlex
from collections.abc import Iterator
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports] - an extra
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

from jaxft.registry import UserError

# In the traceback that a worker sends as text. Beam adds the step, Python what comes of the exception.
_TOLD = re.compile(rf"{re.escape(UserError.__module__)}\.UserError: (.+?)(?: \[while running '|\n\n|\Z)", re.S)


def made(flags: str) -> Any:
    """A pipeline with the options that `flags` names. Raises UserError where Beam refuses one."""
    usage = io.StringIO()  # argparse prints all options that there are
    try:
        with contextlib.redirect_stderr(usage):
            options = PipelineOptions(shlex.split(flags))
            options.get_all_options()  # reads them all; a pipeline would read most of them when it runs
            return beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError, SystemExit) as error:
        why = error.__context__ if isinstance(error, SystemExit) else error  # that of argparse
        raise UserError(f"beam={flags!r}: {why}; name options of Beam, such as --runner=DirectRunner") from error


@contextlib.contextmanager
def pipeline(flags: str) -> Iterator[Any]:
    """A pipeline that runs when the block ends. Raises UserError as `made`, and the first that a worker raised."""
    one = made(flags)
    with _unlogged():
        try:
            with one:
                yield one
        except Exception as error:
            found = _TOLD.search(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
            if not found:
                raise
            raise UserError(found[1]) from error


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps tracebacks of what becomes one message out of the log."""

    def wanted(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], UserError))

    logger = logging.getLogger("apache_beam.runners.common")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
