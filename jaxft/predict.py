"""python -m jaxft.predict --run=RUN --input=x.jsonl --output=y.jsonl: labels a file, in input order, streaming.

Of a model that reads images, --input may also be a folder of them.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft import atomic, cli
from jaxft.registry import BadRow, UserError


def main() -> None:
    cli.guarded(lambda: predict(_arguments()), memory_fix=cli.LABELLING_FIX)


def _arguments() -> argparse.Namespace:
    parser = cli.parser("python -m jaxft.predict", "Label the rows of a file with probabilities, in input order.")
    parser.add_argument(
        "--input", required=True, help="jsonl, csv, tsv, parquet, txt or conll file, also .gz; or a folder of images"
    )
    parser.add_argument(
        "--output", required=True, help="jsonl file to write; the rows of the input with a prediction each"
    )
    cli.add_adapters(parser)
    parser.add_argument(
        "--on_bad", choices=("stop", "skip"), default="stop", help="skip: such rows get an 'error' instead"
    )
    return parser.parse_args()


def predict(arguments: argparse.Namespace) -> None:
    """Writes `output` aside and renames it when it is complete. Raises UserError for a bad row unless told to skip."""
    output = Path(arguments.output)
    cli.check_output(output, Path(arguments.input))
    rows = cli.read_input(arguments.input, images=True)  # what is wrong with it is said before the model loads
    classifiers = cli.classifiers(arguments)
    classifier = next(iter(classifiers.values()))
    count = labelled = 0
    with atomic.file(output, shared=True) as draft, draft.open("w", encoding="utf-8") as out:
        for chunk in cli.chunks(rows, classifier.reader.most):
            if not count:
                for one in classifiers.values():
                    _check_columns(chunk, one.task)
            records, good = _label(chunk, classifiers, arguments.on_bad)
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            count, labelled = count + len(records), labelled + good
    errors = f", {count - labelled:,} rows with an error" if count > labelled else ""
    cli.say(f"{labelled:,} rows labelled{errors}: {output}")


def _check_columns(chunk: list[tuple[str, Any]], task: Any) -> None:
    """Raises UserError where no row that can be read has the column of a text."""
    from jaxft.data.source import Split

    rows = [row for _, row in chunk if not isinstance(row, BadRow)]
    if rows:
        task.check_columns({"input": Split(rows, "", str)}, labelled=False, option="--")


def _label(
    chunk: list[tuple[str, Any]], classifiers: Mapping[str, Any], on_bad: str
) -> tuple[list[dict[str, Any]], int]:
    """One record a row, in order, the row with its predictions or an error; and how many have a prediction."""
    examples: dict[str, list[Any]] = {name: [] for name in classifiers}
    rows, records, places, wheres = [], [], [], []
    for where, row in chunk:
        try:
            if isinstance(row, BadRow):
                raise row
            made = {name: one.example(row, labelled=False) for name, one in classifiers.items()}
        except BadRow as reason:
            if on_bad == "stop":
                raise UserError(f"{where}: {reason}; mend the row, or pass --on_bad=skip") from reason
            records.append({**({} if isinstance(row, BadRow) else row), "error": f"{where}: {reason}"})
            continue
        places.append(len(records))
        wheres.append(where)
        records.append(dict(row))
        rows.append(row)
        for name, example in made.items():
            examples[name].append(example)
    for name, one in classifiers.items() if rows else ():
        start = f"{name}_predicted" if name else "predicted"
        predictions = one.task.predictions(one.logits(examples[name], wheres), rows)
        for place, prediction in zip(places, predictions, strict=True):
            records[place] |= {f"{start}_{field}": value for field, value in prediction.items()}
    return records, len(rows)


if __name__ == "__main__":
    main()
