"""The main job against TF-IDF + logistic regression, on the same docstrings and the same splits.

    python benchmarks/docstrings.py --run=runs/bert_cls

The baseline reads whole texts; the run reads what fits its row length. Prints accuracies and seconds as a table, and
as JSON with --json=FILE.
"""

import argparse
import json
import time
from pathlib import Path

from jaxft.data.docstrings import docstrings


def baseline() -> dict[str, float]:
    """Sublinear unigram counts; C by the validation split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = docstrings(data_dir="").splits
    texts, labels = {}, {}
    for name, split in splits.items():
        rows = [split.rows[i] for i in range(len(split.rows))]
        texts[name], labels[name] = [row["text"] for row in rows], [row["label"] for row in rows]
    started = time.perf_counter()
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=2)
    train = vectors.fit_transform(texts["train"])
    held = {name: vectors.transform(texts[name]) for name in ("validation", "test")}
    fitted = [LogisticRegression(C=c, max_iter=200).fit(train, labels["train"]) for c in (3.0, 10.0, 30.0)]
    best = max(fitted, key=lambda model: model.score(held["validation"], labels["validation"]))
    return {
        "accuracy": float(best.score(held["test"], labels["test"])),
        "seconds": time.perf_counter() - started,
        "rows": len(texts["train"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/bert_cls", help="a finished run of configs/bert_cls.py")
    parser.add_argument("--json", default="", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    report = json.loads((Path(arguments.run) / "report.json").read_text(encoding="utf-8"))
    lines = (Path(arguments.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["time"] for line in lines]
    result = {
        "tfidf_logistic_regression": baseline(),
        "jaxft": {"accuracy": report["accuracy"], "seconds": times[-1] - times[0]},
    }
    print("| | test accuracy | seconds of training |\n|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row['accuracy']:.4f} | {row['seconds']:.0f} |")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
