"""Speed of the way from text to batches, without a model: tokenizer, token cache, packing plan, pipeline.

    python -m benchmarks.input_pipeline [--texts=1000000]

Prints one JSON line. Targets: the cache builds at half the raw speed of the Rust tokenizer or faster; the pipeline
delivers 30,000 packed examples/s or more on two cores.
"""

import argparse
import json
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft.data import docstrings, pack, pipeline, tokens
from jaxft.data.source import Split
from jaxft.hf import tokenizer as hf_tokenizer
from jaxft.hf import trainers

ROW_LENGTH, BATCH, MAX_SEGMENTS = 128, 64, 16


class Example(NamedTuple):
    text: str
    pair: str | None
    label: int


def short_texts(count: int, data_dir: str) -> list[str]:
    """`count` lines of 5 or more words from the docstrings; a line that comes again is numbered."""
    rows = docstrings.docstrings(data_dir=data_dir).splits["train"].rows
    lines = [line.strip() for row in rows for line in row["text"].splitlines() if len(line.split()) >= 5]
    return [line if i < len(lines) else f"{line} {i}" for i, line in zip(range(count), cycle(lines), strict=False)]


def seconds(function: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--data_dir", default="", help="where the docstrings are kept; default: the private cache")
    options = parser.parse_args()
    texts = short_texts(options.texts, options.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        trainers.wordpiece(iter(texts[:50_000]), vocab=8192, lowercase=True, folder=Path(folder))
        encoder = hf_tokenizer.load(Path(folder))

    def raw() -> None:
        encoder.tokenizer.no_padding()
        encoder.tokenizer.enable_truncation(ROW_LENGTH)
        for start in range(0, len(texts), tokens.CHUNK):
            encoder.tokenizer.encode_batch(texts[start : start + tokens.CHUNK])

    def encode(batch: list[tuple[str, str | None]]) -> Any:
        return encoder.encode(batch, ROW_LENGTH)

    split = Split([{"text": text} for text in texts], "benchmark", lambda i: f"text {i}")
    with tempfile.TemporaryDirectory() as folder:
        raw_seconds, _ = seconds(raw)
        build_seconds, cache = seconds(
            lambda: tokens.build(
                split, lambda row: Example(row["text"], None, 0), encode, key={}, folder=folder, on_bad="stop"
            )
        )
        open_seconds, _ = seconds(
            lambda: tokens.build(split, lambda row: None, encode, key={}, folder=folder, on_bad="stop")
        )
        plan_seconds, plan = seconds(
            lambda: pack.plan(cache.lengths, row_length=ROW_LENGTH, max_segments=MAX_SEGMENTS, seed=0)
        )
        arguments = dict(batch=BATCH, row_length=ROW_LENGTH, share=pipeline.WHOLE)
        stream = pipeline.batches(cache, plan, seed=0, start=0, shuffle=True, **arguments)
        next(stream)
        count = min(2000, plan.rows // BATCH)
        batch_seconds, examples = seconds(lambda: sum(int(b["weight"].sum()) for b in islice(stream, count)))
    print(
        json.dumps(
            {
                "texts": len(texts),
                "tokens_per_text": round(float(np.mean(cache.lengths)), 1),
                "tokenizer_texts_per_s": round(len(texts) / raw_seconds),
                "cache_texts_per_s": round(len(texts) / build_seconds),
                "cache_to_tokenizer": round(raw_seconds / build_seconds, 2),
                "cache_open_s": round(open_seconds, 2),
                "plan_s": round(plan_seconds, 2),
                "fill": round(plan.fill, 4),
                "examples_per_row": round(plan.examples_per_row, 2),
                "pipeline_examples_per_s": round(examples / batch_seconds),
                "pipeline_batches_per_s": round(count / batch_seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
