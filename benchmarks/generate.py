"""Tokens a second that are written, beside transformers' generate on the same weights.

    python benchmarks/generate.py --json=generate.json

A random Llama of 8 layers and 512 dimensions in float32, prompts of 32 tokens, greedy, no end of text. Both sides take
turns, the first of which is not measured. Needs torch. Prints medians, and the median of the ratios of the turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.generator import Generator

SIZES = dict(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
)
PROMPT, BATCHES = 32, (1, 8)


def folder(path: Path) -> Any:
    """Random weights and a tokenizer of numbers, saved to `path`; transformers' model."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path)
    words = {"<pad>": 0} | {str(i): i for i in range(1, SIZES["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="<pad>")).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    return model


def sides(path: Path, batch: int, new: int) -> dict[str, Callable[[], Any]]:
    import torch

    model = folder(path)
    made = Generator(str(path), {"max_new_tokens": new}, dtype="float32", batch=batch, tensor=1, seed=0)
    ids = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (batch, PROMPT)).astype(np.int32)
    inputs = torch.tensor(ids).long()
    options = dict(attention_mask=torch.ones_like(inputs), max_new_tokens=new, min_new_tokens=new, do_sample=False)
    found: dict[str, Callable[[], Any]] = {
        "jaxft": lambda: made.write(list(ids)),
        "transformers": lambda: model.generate(inputs, **options),
    }
    return found | ({"jaxft, streamed": lambda: list(made.stream(ids[0]))} if batch == 1 else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=128, help="tokens to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", default="", help="file to write the seconds of every turn to")
    arguments = parser.parse_args()
    measured: dict[str, dict[str, list[float]]] = {}
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as path:
            runs = sides(Path(path), batch, arguments.new)
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(arguments.repeats + 1):
                for name, run in runs.items():
                    started = time.perf_counter()
                    run()
                    if turn:  # the first one compiles
                        times[name].append(time.perf_counter() - started)
        measured[str(batch)] = times
        for name, seconds in times.items():
            speed = batch * arguments.new / statistics.median(seconds)
            ratio = statistics.median(b / a for a, b in zip(seconds, times["transformers"], strict=True))
            print(f"batch {batch}  {name:16} {speed:8.0f} tokens/s  {ratio:5.2f} x transformers")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
