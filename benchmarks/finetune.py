"""Fine-tuning by jaxft and by the Hugging Face Trainer: same checkpoint, data, batch, epochs and schedule.

    python benchmarks/finetune.py                      a random 6 x 384 BERT on SST-2, 3 seeds
    python benchmarks/finetune.py --hf=FOLDER          any BERT, hub id or folder: for accuracy
    python benchmarks/finetune.py --limit=1000 --seeds=1    a quick look

Each run is a process of its own, one after the other, in an order that alternates with the seed, with empty caches:
imports, tokenising and compiling count. jaxft packs examples into rows of --length tokens; rows a step are chosen so
that a step holds as many examples as the Trainer's batch, on average. The Trainer pads each batch to its longest text.
float32 on CPUs; on a GPU bfloat16, against torch.compile and sdpa.

Needs `pip install -e .[test]`. Prints a table; --json=FILE keeps the numbers.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WARMUP, DECAY, CLIP, PACK = 0.06, 0.01, 1.0, 16
MIB = 2**20


def read_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def prepare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What both sides are given: data files, a checkpoint with a head, numbers. Also the rows a step of jaxft."""
    for name in ("train", "dev"):
        path = Path(options.data) / f"{name}.tsv"
        if not path.is_file():
            sys.exit(f"skipped: there is no {path}; --data=FOLDER holds train.tsv and dev.tsv with columns text, label")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (work / path.name).write_text("".join(lines[: options.limit + 1] if options.limit else lines), encoding="utf-8")
    rows = read_tsv(work / "train.tsv")
    checkpoint(options.hf, rows, work / "checkpoint")

    from jaxft.data import pack
    from jaxft.hf import tokenizer

    encoded = tokenizer.load(work / "checkpoint").encode([(row["text"], None) for row in rows], options.length)
    lengths = np.array([len(one.ids) for one in encoded])
    plan = pack.plan(lengths, row_length=options.length, max_segments=PACK, seed=0)
    per_row = len(rows) / plan.rows
    gpu = shutil.which("nvidia-smi") is not None
    return {
        "gpu": gpu,
        "dtype": "bfloat16" if gpu else "float32",
        "examples": len(rows),
        "tokens": int(lengths.sum()),
        "examples_a_row": per_row,
        "rows": max(1, round(options.batch / per_row)),
        **{name: getattr(options, name) for name in ("batch", "epochs", "length", "lr")},
    }


def checkpoint(hf: str, rows: Sequence[dict[str, str]], folder: Path) -> None:
    """Saves `hf`, or a random 6 x 384 BERT, with a new classification head: the weights that both start from."""
    import torch
    import transformers

    torch.manual_seed(0)
    labels = sorted({row["label"] for row in rows})
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if hf:
        network = transformers.AutoModelForSequenceClassification.from_pretrained(hf, **names)
        transformers.AutoTokenizer.from_pretrained(hf).save_pretrained(folder)
    else:
        from jaxft.hf import trainers

        texts = (row["text"] for row in rows)
        trainers.wordpiece(texts, vocab=30522, lowercase=True, folder=folder)
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        network = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=30522, **sizes, **names)
        )
    network.save_pretrained(folder)


def measured(command: Sequence[str], environ: dict[str, str], log: Path) -> dict[str, Any]:
    """Runs `command` to its end: start (epoch seconds), seconds, peak memory, page faults."""
    start = time.time()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        text = log.read_text(encoding="utf-8", errors="replace")
        sys.exit(f"{' '.join(command)}\nended with status {status}:\n{text[-4000:]}")
    return {"start": start, "process_s": time.time() - start, "peak_mib": usage.ru_maxrss * 1024 / MIB}


def run_jaxft(given: dict[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """One run of `python -m jaxft.main` with caches of its own."""
    folder, log = work / f"jaxft-{seed}", work / f"jaxft-{seed}.log"
    epochs = f"{given['epochs']} epochs"
    config = {
        "seed": seed,
        "data.train": work / "train.tsv",
        "data.validation": work / "dev.tsv",
        "data.holdout": 0.0,
        "input.length": given["length"],
        "input.pack": PACK,
        "model.hf": work / "checkpoint",
        "model.dtype": given["dtype"],
        "optim.lr": given["lr"],
        "optim.weight_decay": DECAY,
        "schedule.warmup": f"{WARMUP:.0%}",
        "train.batch": given["rows"],
        "train.duration": epochs,
        "train.clip": CLIP,
        "train.log_every": "5%",
        "evaluate.every": epochs,
        "evaluate.batch": 2 * given["rows"],
        "checkpoint.every": epochs,
        "checkpoint.export": "last",
        "mesh.data": 1,
    }
    command = [sys.executable, "-m", "jaxft.main", "--config=configs/bert_cls.py:files", f"--workdir={folder}"]
    command += [f"--config.{key}={value}" for key, value in config.items()]
    environ = os.environ | {"JAXFT_CACHE_DIR": str(work / f"cache-{seed}")}
    environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    result = measured(command, environ, log)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if "loss" in record]
    first, last = steps[0], steps[-1]
    a_step = (last["time"] - first["time"]) / max(1, last["step"] - first["step"])
    said = log.read_text(encoding="utf-8").splitlines()
    return result | {
        "steps": last["step"],
        "first_step_s": first["time"] - (first["step"] - 1) * a_step - result["start"],
        "trained_s": last["time"] - result["start"],
        "compile_s": next(float(line.split()[2]) for line in said if line.startswith("compiled in ")),
        "accuracy": json.loads((folder / "report.json").read_text(encoding="utf-8"))["accuracy"],
        "mfu": statistics.median(record["mfu"] for record in steps[1:]) if "mfu" in last else None,
        "formula": next((line for line in said if line.startswith("MFU:")), ""),
    }


def run_trainer(given: dict[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """One run of the Trainer: this file again, as `train_by_trainer`."""
    spec, report = work / f"trainer-{seed}.json", work / f"trainer-{seed}-report.json"
    spec.write_text(json.dumps(given | {"seed": seed, "work": str(work), "report": str(report)}), encoding="utf-8")
    result = measured([sys.executable, __file__, f"--trainer={spec}"], dict(os.environ), work / f"trainer-{seed}.log")
    times = json.loads(report.read_text(encoding="utf-8"))
    return result | {
        "steps": times["steps"],
        "first_step_s": times["first"] - result["start"],
        "trained_s": times["last"] - result["start"],
        "accuracy": times["accuracy"],
    }


def train_by_trainer(given: dict[str, Any]) -> None:
    """The other side, in its own process: the Trainer as its documentation sets it up."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.time())

    work, clock = Path(given["work"]), Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "checkpoint")
    kernel = {"attn_implementation": "sdpa"} if given["gpu"] else {}
    network = transformers.AutoModelForSequenceClassification.from_pretrained(work / "checkpoint", **kernel)
    classes = {str(name): number for name, number in network.config.label2id.items()}

    def tokenised(name: str) -> list[dict[str, Any]]:
        rows = read_tsv(work / f"{name}.tsv")
        texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=given["length"])
        numbered = zip(texts["input_ids"], texts["token_type_ids"], rows, strict=True)
        return [{"input_ids": ids, "token_type_ids": t, "label": classes[row["label"]]} for ids, t, row in numbered]

    steps = -(-given["examples"] // given["batch"]) * given["epochs"]
    arguments = transformers.TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=given["batch"],
        per_device_eval_batch_size=2 * given["batch"],
        num_train_epochs=given["epochs"],
        learning_rate=given["lr"],
        warmup_steps=round(WARMUP * steps),
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        bf16=given["gpu"],
        torch_compile=given["gpu"],
        use_cpu=not given["gpu"],
        seed=given["seed"],
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=network,
        args=arguments,
        train_dataset=tokenised("train"),  # pyright: ignore[reportArgumentType]
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()
    scored = trainer.predict(tokenised("dev"))  # pyright: ignore[reportArgumentType]
    accuracy = float((np.argmax(scored.predictions, -1) == scored.label_ids).mean())
    times = {"first": clock.times[0], "last": clock.times[-1], "steps": len(clock.times), "accuracy": accuracy}
    Path(given["report"]).write_text(json.dumps(times), encoding="utf-8")


def summary(runs: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, float]:
    """Means over the seeds."""
    examples = given["examples"] * given["epochs"]
    after_first = [examples * (1 - 1 / r["steps"]) / (r["trained_s"] - r["first_step_s"]) for r in runs]
    columns = {key: statistics.mean(run[key] for run in runs) for key in runs[0] if isinstance(runs[0][key], float)}
    return {
        "examples_per_s": statistics.mean(examples / run["trained_s"] for run in runs),
        "examples_per_s_after_first_step": statistics.mean(after_first),
        "steps": statistics.mean(run["steps"] for run in runs),
        "accuracy_spread": statistics.pstdev(run["accuracy"] for run in runs),
        **columns,
    }


ROWS = {
    "examples/s, from process start to last step": ("examples_per_s", "{:.1f}"),
    "examples/s after the first step": ("examples_per_s_after_first_step", "{:.1f}"),
    "steps": ("steps", "{:.0f}"),
    "seconds to the first step's end": ("first_step_s", "{:.1f}"),
    "of these, compiling": ("compile_s", "{:.1f}"),
    "seconds of the whole process": ("process_s", "{:.1f}"),
    "peak memory, MiB": ("peak_mib", "{:.0f}"),
    "accuracy": ("accuracy", "{:.4f}"),
    "standard deviation over seeds": ("accuracy_spread", "{:.4f}"),
}


def table(ours: dict[str, float], theirs: dict[str, float]) -> str:
    lines = ["| | jaxft | Trainer | ratio |", "|---|---|---|---|"]
    for title, (key, form) in ROWS.items():
        a, b = (form.format(side[key]) if key in side else "" for side in (ours, theirs))
        ratio = f"{ours[key] / theirs[key]:.2f}" if theirs.get(key) and key in ours else ""
        lines.append(f"| {title} | {a} | {b} | {ratio} |")
    return "\n".join(lines)


def utilisation(ours: dict[str, float], theirs: dict[str, float], formula: str) -> str:
    """Both sides' MFU by one formula: the same FLOPs for each real token, padding not counted."""
    ratio = theirs["examples_per_s_after_first_step"] / ours["examples_per_s_after_first_step"]
    return f"MFU: jaxft {ours['mfu']:.1%}, Trainer {ours['mfu'] * ratio:.1%}\n{formula}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", default="", help="BERT checkpoint; default: random, 6 layers x 384")
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data/sst2"), help="folder of train.tsv and dev.tsv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="examples a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example at most")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--limit", type=int, default=0, help="rows of each split to use; 0: all")
    parser.add_argument("--json", default="", help="write the numbers to this file as well")
    parser.add_argument("--trainer", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        train_by_trainer(json.loads(Path(options.trainer).read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = prepare(options, Path(folder))
        print(
            f"{given['examples']:,} examples, {given['dtype']}; jaxft: {given['rows']} rows a step = "
            f"{given['rows'] * given['examples_a_row']:.1f} examples on average; Trainer: {given['batch']} examples"
        )
        sides = {"jaxft": run_jaxft, "trainer": run_trainer}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for seed in range(options.seeds):
            for name in list(sides)[:: -1 if seed % 2 else 1]:
                runs[name].append(sides[name](given, seed, Path(folder)))
                print(f"seed {seed}, {name}: {runs[name][-1]['trained_s']:.1f} s to the last step", flush=True)
    ours, theirs = (summary(runs[name], given) for name in sides)
    print(table(ours, theirs))
    if "mfu" in ours:
        print(utilisation(ours, theirs, runs["jaxft"][0]["formula"]))
    if options.json:
        result = {"given": given, "runs": runs, "jaxft": ours, "trainer": theirs}
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
