"""What a step costs that trains adapters, against one that trains everything, one that trains nearly nothing, and peft.

    python -m benchmarks.peft [--rounds=7] [--rank=8] [--only="LoRA of all layers"]

A BERT of 6 x 384 from random weights (no dropout) and one batch of 8 rows of 128 tokens, float32. Sides, a step each
in alternation: everything trains; only the norm of the embeddings does, so that the backward pass goes through all
layers and makes no kernel's gradient; methods of jaxft.peft; and peft with torch, the same LoRA and everything, where
both are installed. With --only (names, parted by commas) the second side and those alone. Prints a table and one JSON
line: medians of the rounds, ratios to the second side, what trains, the memory of the compiled step and the bytes of a
checkpoint.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs.bert_cls import get_config
from jaxft import build, scoring, sharding, state
from jaxft.checkpoint import nbytes
from jaxft.config import parse
from jaxft.models import bert
from jaxft.peft import PEFT
from jaxft.registry import call
from jaxft.tasks.cls import Cls

ROWS, LENGTH, CLASSES = 8, 128, ("a", "b")
CONFIG = bert.Config(layers=6, d_model=384, d_ff=1536, heads=12, dropout=0.0, attention_dropout=0.0)
TASK = Cls(text="text", pair="", label="label", metric="", smoothing=0.0, classes=CLASSES)
ONE = dict(data=1, fsdp=1, tensor=1, context=1, expert=1)
KEEP = r"(?!embed/norm/).*"  # every path but those of that norm


def sides(rank: int) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Name -> (section peft, train.freeze)."""
    lora = dict(name="lora", rank=rank, target="all-linear")
    return {
        "everything": (dict(name="full"), ()),
        "frozen": (dict(name="full"), (KEEP,)),
        "LoRA of attention": ({**lora, "target": "attention"}, ()),
        "LoRA of all layers": (lora, ()),
        "DoRA of all layers": ({**lora, "dora": True}, ()),
        "AdaLoRA": (dict(name="adalora", target="all-linear", init_rank=12, target_rank=rank), ()),
        "(IA)^3": (dict(name="ia3"), ()),
        "BitFit": (dict(name="bitfit"), ()),
        "Houlsby": (dict(name="houlsby"), ()),
        "Pfeiffer": (dict(name="pfeiffer"), ()),
        "prefix": (dict(name="prefix"), ()),
    }


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    tokens = {
        "ids": rng.integers(1000, CONFIG.vocab, shape).astype(np.int32),
        "type": np.zeros(shape, np.int32),
        "segment": np.ones(shape, np.int32),
        "position": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape).copy(),
    }
    label = rng.integers(0, len(CLASSES), (ROWS, 1)).astype(np.int32)
    return tokens | {"first": np.zeros((ROWS, 1), np.int32), "label": label, "weight": np.ones((ROWS, 1), np.float32)}


def ours(section: dict[str, Any], freeze: tuple[str, ...]) -> tuple[Callable[[], None], dict[str, float]]:
    """(one step, what is known of it)."""
    raw = get_config().to_dict()
    raw["model"]["dtype"], raw["train"]["freeze"] = "float32", freeze
    raw["train"].update(ema=0.0, layer_decay=1.0)
    config = parse(raw)
    mesh = sharding.make_mesh(ONE, jax.devices()[:1])
    method = call(PEFT, section, "peft").for_run(1000)
    options = dict(head="sequence", outputs=len(CLASSES), model=config.model, rules=config.sharding, mesh=mesh)
    net = build.network(bert, CONFIG, peft=method, **options)
    plan = state.plan(net, config, lambda step: 1.0)
    placed = scoring.to_device(batch(), sharding.batch_sharding(mesh, net.activations))
    compiled = state.training_step(net, TASK, plan, config).lower(plan.abstract, placed, {}).compile()
    now = {"state": plan.make(build.parameters(net, None, 0, False)[0])}

    def step() -> None:
        now["state"], sums = compiled(now["state"], placed, {})
        jax.block_until_ready(sums)

    memory = compiled.memory_analysis()
    trained = sum(leaf.size for leaf in jax.tree.leaves(plan.abstract.params))
    return step, {
        "trains": trained / sum(math.prod(leaf.shape) for leaf in net.abstract.values()),
        "MiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
        "checkpoint MiB": nbytes(state.saved(net, plan.abstract)) / 2**20,
    }


def theirs(rank: int) -> dict[str, Callable[[], None]]:
    """The same steps by torch, and by peft around it."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    rates = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=len(CLASSES))
    given = batch()
    inputs = {"input_ids": given["ids"], "attention_mask": given["segment"], "labels": given["label"][:, 0]}
    tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in inputs.items()}
    hf = transformers.BertConfig(**sizes, **rates)
    names = ["query", "key", "value", "dense"]
    kind = peft.LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=16, target_modules=names)
    models = {
        "torch: everything": transformers.BertForSequenceClassification(hf),
        "torch: LoRA of all layers": peft.get_peft_model(transformers.BertForSequenceClassification(hf), kind),
    }

    def stepper(model: Any) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

        def step() -> None:
            model(**tensors).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {name: stepper(model.train()) for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    wanted = {"frozen", *args.only.split(",")} if args.only else set(sides(args.rank))
    made = {name: ours(*options) for name, options in sides(args.rank).items() if name in wanted}
    steps = {name: step for name, (step, _) in made.items()}
    if not args.only and all(importlib.util.find_spec(name) for name in ("torch", "peft")):
        steps |= theirs(args.rank)
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in found.items()}
    print("| | ms a step | of frozen | trains | memory, MiB | checkpoint, MiB |\n|---|---|---|---|---|---|")
    for name, median in medians.items():
        told = made[name][1] if name in made else {}
        rest = (
            [f"{told['trains']:.2%}", f"{told['MiB']:.0f}", f"{told['checkpoint MiB']:.2f}"] if told else ["", "", ""]
        )
        print(f"| {name} | {1000 * median:.0f} | {median / medians['frozen']:.2f} | {' | '.join(rest)} |")
    print(json.dumps({"cores": os.cpu_count(), "rounds": args.rounds, "seconds": medians, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
