"""For every registered task a config of a tiny run on made-up rows: what tests over all tasks share."""

import functools
import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.verbs_run import write_rows

LENGTH, STEPS, DEVICES = 32, 4, 8
COLOURS = ("red", "blue", "green")
OPTIONS = {
    "data.holdout": 0.0,
    "input.length": LENGTH,
    "tokenizer.vocab": 320,
    "model.hf": "",
    "model.dtype": "float32",
    "model.remat": "none",
    "model.scratch.layers": 1,
    "model.scratch.d_model": 16,
    "model.scratch.d_ff": 32,
    "model.scratch.heads": 2,
    "optim.lr": 1e-3,
    "schedule.warmup": 1,
    "train.batch": DEVICES,
    "train.duration": f"{STEPS} steps",
    "train.log_every": "2 steps",
    "evaluate.batch": DEVICES,
    "evaluate.every": f"{STEPS} steps",
    "checkpoint.every": "1 step",
    "checkpoint.keep": STEPS,
    "log.tensorboard": False,
}
TEXTS = {"text": "text", "pair": "pair", "metric": ""}
NARROW = {"d_model": 8, "d_ff": 16, "heads": 2}
# Task -> (config and its variant, options beside the common ones).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal_lm": ("gpt_clm:files", {}),
    "chat": ("chat_sft:files", {"input.pack": 3}),
    "cls": ("bert_cls:files", {"input.pack": 3}),
    "detection": ("electra:files", {"task.generator": NARROW, "task.generator_hf": "", "model.scratch.d_embed": 16}),
    "distill": ("distill:files", {"input.pack": 3}),
    "dpo": ("dpo:files", {}),
    "image_cls": (
        "vit_cls:folder",
        {"input.length": 10, "model.scratch.image_size": 12, "model.scratch.patch_size": 4},
    ),
    "masked_lm": ("bert_mlm:files", {}),
    "multiple_choice": ("choice:files", {"task.label": "right", "input.pack": 2}),
    "multilabel": (
        "bert_cls:files",
        {"task": TEXTS | dict(name="multilabel", pair="", label="labels", separator="", threshold=0.5, smoothing=0.0)},
    ),
    "pair": ("bert_cls:files", {"task": TEXTS | dict(name="pair", label="label", smoothing=0.1)}),
    "regression": ("bert_cls:files", {"task": TEXTS | dict(name="regression", label="score")}),
    "retrieval": ("retrieval:files", {"input.pack": 2}),
    "seq2seq": ("mt", {"data.numbers": 60, "task.target_length": LENGTH, "task.write": 2, "task.max_new_tokens": 4}),
    "similarity": (
        "retrieval:files",
        {"task": TEXTS | dict(name="similarity", label="score", most=4.0, pooling="first"), "input.pack": 2},
    ),
    "span_corruption": ("t5_span:files", {}),
    "span_qa": ("qa:files", {"task.question_length": 6, "task.stride": 8, "task.answer_length": 4, "input.pack": 2}),
    "token_cls": ("ner:files", {"input.pack": 3}),
}


def config(name: str, folder: Path, **changed: Any) -> dict[str, Any]:
    """The config of a run of task `name` as plain dicts; its data are written below `folder`.

    changed: options with "__" for "."; what a model has no field for is left out.
    """
    file, options = CASES[name]
    module, _, variant = file.partition(":")
    raw = importlib.import_module(f"configs.{module}").get_config(variant).to_dict()
    if raw["data"]["name"] == "images":
        raw["data"].update(folder=str(pictures(folder)), train="train", validation="train")
    elif raw["data"]["name"] == "files":
        for split, count in (("train", 24), ("validation", 6)):
            raw["data"][split] = str(write_rows(folder / f"{split}.jsonl", rows(count)))
    if "positions" in raw["model"]["scratch"]:
        raw["model"]["scratch"]["positions"] = LENGTH
    given = OPTIONS | options | {key.replace("__", "."): value for key, value in changed.items()}
    for key, value in given.items():
        *sections, last = key.split(".")
        section = functools.reduce(dict.__getitem__, sections, raw) if raw[sections[0] if sections else last] else None
        if section is not None and (last in section or key in options):
            section[last] = value
    return raw


def rows(count: int) -> list[dict[str, Any]]:
    """Rows that have a column for every task: a ball of some colour, and what is asked and said of it."""
    rng, found = random.Random(count), []
    for i in range(count):
        colour, other = rng.sample(COLOURS, 2)
        words = ["the", "ball", "is", colour, *rng.choices(("so", "then", "and"), k=rng.randint(0, 9))]
        text, asked, said = " ".join(words), f"Which ball {i}?", f"The {colour} one."
        user, answer = {"role": "user", "content": asked}, {"role": "assistant", "content": said}
        found.append(
            {"text": text, "pair": f"{colour} {i}", "label": colour, "score": i % 5, "labels": [colour][: i % 3]}
            | {"tokens": words, "tags": ["B-C" if word == colour else "O" for word in words]}
            | {"question": "which?", "choices": [colour, other], "right": 0, "id": str(i), "context": text}
            | {"answers": {"text": [colour], "answer_start": [text.index(colour)]}}
            | {"messages": [user, answer], "prompt": asked, "chosen": said, "rejected": f"No {other}."}
        )
    return found


def pictures(folder: Path) -> Path:
    """Two dozen images of noise in three classes."""
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / "pictures" / "train" / COLOURS[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(path)
    return folder / "pictures"
