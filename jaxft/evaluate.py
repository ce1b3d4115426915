"""python -m jaxft.evaluate --run=RUN --data=dev.jsonl: scores a model on labelled rows."""

import argparse
import json
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft import cli, disk
from jaxft.data.source import quoted
from jaxft.registry import BadRow, Dropped, UserError, call
from jaxft.writer import json_numbers

# A builder may end in a version, and a split holds a colon where it is sliced: tfds:glue/sst2:2.0.0:train[:50%].
TFDS = re.compile(r"tfds:(?P<builder>[^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?+):(?P<test>.+)")

SCORED = ("seq2seq", "chat", "responses", "corpus")  # what tasks read that label no rows
Reasons = list[tuple[str, str]]  # (place of a row, why it is not used)


def main() -> None:
    cli.guarded(lambda: evaluate(_arguments()), memory_fix=cli.LABELLING_FIX)


def _arguments() -> argparse.Namespace:
    parser = cli.parser("python -m jaxft.evaluate", "Score a model on labelled rows.")
    parser.add_argument(
        "--data",
        default="",
        help="a file of labelled rows, a folder of class folders, or tfds:BUILDER:SPLIT; default: the run's own data",
    )
    parser.add_argument(
        "--split", default="", help="without --data: which split of the run's own data (default: test, or validation)"
    )
    parser.add_argument("--output", default="", help="write the report as JSON to this file as well")
    parser.add_argument(
        "--on_bad", choices=("stop", "skip"), default="stop", help="skip: leave rows out that cannot be used"
    )
    return parser.parse_args()


def evaluate(arguments: argparse.Namespace) -> None:
    """Prints the report. Raises UserError for missing columns and, before anything is scored, for bad rows."""
    if arguments.output:
        cli.check_output(Path(arguments.output))
    data, name = _data(arguments)
    classifier = _model(arguments)
    split = classifier.split(data.splits[name])
    classifier.task.check_columns({name: split}, option="--")
    by_name = _by_name(classifier.task, data.label_names)

    def example(i: int) -> Any:
        return classifier.example(by_name(split.rows[i]))

    usable, bad, dropped = _sifted(split, example)
    rows = len(usable) + len(bad) + len(dropped)
    if bad and (arguments.on_bad == "stop" or not len(usable)):
        fix = "mend them, or pass --on_bad=skip" if len(usable) else "mend them, or name another column with --label"
        raise UserError(f"{len(bad):,} of {rows:,} rows cannot be used:\n{quoted(bad)}\n{fix}")
    if not len(usable):
        raise UserError(f"all {rows:,} rows are left out:\n{quoted(dropped)}\nset --length higher")
    if left := [*bad, *dropped]:
        cli.say(f"{len(left):,} of {rows:,} rows left out:\n{quoted(left)}")
    meter = classifier.task.meter()
    size = classifier.reader.most
    for start in range(0, len(usable), size):
        chunk = usable[start : start + size]
        classifier.score([example(i) for i in chunk], [split.where(i) for i in chunk], meter)
    cli.say(meter.table())
    if arguments.output:
        report = json_numbers({**meter.result(), "details": meter.report()})
        with disk.writing(arguments.output):
            Path(arguments.output).write_text(
                json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )


def _model(arguments: argparse.Namespace) -> Any:
    """What --run or --hf names: what labels rows, or of a run whose task labels none what scores its texts."""
    if not arguments.run:
        return cli.classifier(arguments)
    source = cli.source_of(arguments.run, arguments.hf)
    config, task, section = cli.task_of(arguments.run)
    if task.reads not in SCORED:
        return cli.classifier(arguments)
    from jaxft import cache, numerics

    numerics.self_check()
    cache.compile_cache(Path(source))
    named = {option: value for flag, option in task.flags.items() if (value := getattr(arguments, flag))}
    columns = {option: _like(section[option], value) for option, value in named.items()}
    how: dict[str, Any] = {"task": {**section, **columns}, "length": arguments.length, "dtype": arguments.dtype}
    if task.generates:
        from jaxft.translator import Translator

        return Translator(source, **how)
    if task.reads == "corpus":
        from jaxft.language import Language

        return Language(source, config=config, **how)
    from jaxft.dialogue import Dialogue

    return Dialogue(source, config=config, **how)


def _like(option: Any, value: str) -> Any:
    """What a flag says of an option: several columns, parted by commas, where it names several."""
    return value if isinstance(option, str) else tuple(value.split(","))


def _data(arguments: argparse.Namespace) -> tuple[Any, str]:
    """(data set, name of the split to score): what --data names, or the run's own data."""
    from jaxft.data import DATASETS, files, folders
    from jaxft.data.source import Dataset

    if arguments.data.startswith("tfds:"):
        parts = TFDS.fullmatch(arguments.data)
        if not parts:
            raise UserError(f"--data={arguments.data}: write tfds:BUILDER:SPLIT, such as tfds:glue/sst2:validation")
        section = {"name": "tfds", "data_dir": "", "train": "", "validation": "", "test": "", **parts.groupdict()}
        return call(DATASETS, section, "data"), "test"
    if Path(arguments.data).is_dir() and arguments.data:
        return Dataset("images", {"data": folders.read_split(Path(arguments.data), "--data")}, {}), "data"
    if arguments.data:
        return Dataset("files", {"data": files.read_split(arguments.data, "--data")}, {}), "data"
    if not arguments.run:
        raise UserError("--data is missing: a file of labelled rows, or tfds:BUILDER:SPLIT")
    from jaxft.runfolder import RunFolder, read_json

    data = call(DATASETS, read_json(RunFolder(cli.run_folder(arguments.run)).config)["config"]["data"], "data")
    wanted = arguments.split or ("test" if "test" in data.splits else "validation")
    if wanted not in data.splits:
        raise UserError(f"--split={wanted}: the run's data have: {', '.join(data.splits)}")
    return data, wanted


def _sifted(split: Any, example: Callable[[int], Any]) -> tuple[Sequence[int], Reasons, Reasons]:
    """(indices of the rows that `example` takes, where and why of bad ones, of those that an option leaves out).

    It is cheap beside the scoring of a row.
    """
    usable, bad, dropped = array("q"), list(split.bad), []
    for i in range(len(split.rows)):
        try:
            example(i)
        except BadRow as reason:
            (dropped if isinstance(reason, Dropped) else bad).append((split.where(i), str(reason)))
        else:
            usable.append(i)
    return usable, bad, dropped


def _by_name(task: Any, label_names: Mapping[str, Sequence[str]]) -> Callable[[Any], Any]:
    """Row -> row, with ids of the source's classes, if it has some, replaced by names where these are the model's."""
    fields = task.hf_config()
    if "label2id" not in fields or task.label not in label_names:
        return lambda row: row
    names, classes = label_names[task.label], fields["label2id"]
    if not set(names) <= set(classes):
        cli.say(f"labels are read as ids: the data's classes are {', '.join(names)}, the model's {', '.join(classes)}")
        return lambda row: row
    return lambda row: {**row, task.label: _named(row[task.label], names)}


def _named(value: Any, names: Sequence[str]) -> Any:
    """The name of an id, or of each in a list; anything else, such as the -1 of hidden labels, as it is."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


if __name__ == "__main__":
    main()
