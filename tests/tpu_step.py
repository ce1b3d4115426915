"""Compiles a train step for eight TPU chips, and prints what the compiler says.

python -m tests.tpu_step bert '{"fsdp": 4, "tensor": 2}'     BERT-base, configs/bert_cls.py:sst2
python -m tests.tpu_step llama '{"fsdp": 4, "tensor": 2}'    a small Llama on rows of 2,048 tokens
python -m tests.tpu_step mixtral '{"fsdp": 2, "expert": 4}'  a small Mixtral of 8 experts
python -m tests.tpu_step long '{"data": 2, "context": 4}'    the Llama on rows of 16,384 tokens, one for `context` chips
-> JSON: bytes a chip, dtypes of the matrix products, collectives, kernels of Pallas, arrays of [length, length],
   shapes of what is gathered

Nothing is allocated and no TPU is opened: it needs libtpu, TPU_SKIP_MDS_QUERY=1 and JAX_PLATFORMS=cpu.
"""

import json
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from configs.bert_cls import get_config
from jaxft import build, sharding, state
from jaxft.config import parse
from jaxft.models import bert, llama, mixtral
from jaxft.tasks.cls import Cls

TOPOLOGY = "v5e:2x4"
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
VOCAB = 28996  # google-bert/bert-base-cased; its other sizes are the defaults of bert.Config
LABELS = ("negative", "positive")
NETWORKS = {  # name -> (family, its Config, what the run's config has otherwise)
    "bert": (bert, bert.Config(vocab=VOCAB), {}),
    "llama": (
        llama,
        # No other size is that of a row. Of three key heads the devices that share the heads get one and a half each.
        llama.Config(vocab=1000, positions=4096, layers=3, d_model=384, d_ff=768, heads=6, kv_heads=3),
        {"input": {"length": 2048}, "train": {"batch": 16}},
    ),
    "long": (
        llama,
        llama.Config(vocab=1000, positions=16384, layers=3, d_model=384, d_ff=768, heads=6, kv_heads=3),
        {"input": {"length": 16384}},
    ),
    "mixtral": (
        mixtral,
        mixtral.Config(vocab=1000, positions=4096, layers=3, d_model=384, d_ff=768, heads=6, kv_heads=2, experts=8),
        {},
    ),
}


def mesh_of(sizes) -> Mesh:
    """The mesh of a topology's devices: jax.make_mesh arranges only devices that are attached."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    shape = sharding.mesh_shape(dict.fromkeys(sharding.AXES, 1) | sizes, len(devices))
    return Mesh(np.array(devices).reshape(shape), sharding.AXES, axis_types=(AxisType.Auto,) * len(shape))


def compiled_step(name, sizes):
    """The step as `jaxft.run` compiles it, but for the devices; and its config."""
    family, cfg, changes = NETWORKS[name]
    raw = get_config("sst2").to_dict()
    raw["model"]["scan"] = True  # the blocks compiled once: 25 s instead of 150
    for section, values in changes.items():
        raw[section].update(values)
    on = mesh_of(sizes)
    if name == "long":
        raw["train"]["batch"] = on.shape["data"]
    config = parse(raw)
    task = Cls(text="sentence", pair="", label="label", metric="", smoothing=0.0, classes=LABELS)
    options = dict(head=task.head, outputs=task.outputs, model=config.model, rules=config.sharding, mesh=on)
    net = build.network(family, cfg, **options)
    plan = state.plan(net, config, state.schedule(config, total=6000, warmup=360))
    return state.training_step(net, task, plan, config).lower(plan.abstract, batch(config, on), {}).compile(), config


def batch(config, on):
    B, L, S = config.train.batch, config.input.length, config.input.pack
    where = sharding.batch_sharding(on, config.sharding.activations)
    tokens = {name: ((B, L), "int32") for name in ("ids", "type", "segment", "position")}
    slots = {name: ((B, S), "int32") for name in ("first", "label", "example")} | {"weight": ((B, S), "float32")}
    return {name: jax.ShapeDtypeStruct(*leaf, sharding=where) for name, leaf in (tokens | slots).items()}


def products(text):
    """(dtype of the operands, elements of the result) of every matrix product; on a TPU they are convolutions."""
    found = []
    kinds = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    for shape, operands in re.findall(r"= \w+\[([\d,]*)\]\S* (?:convolution|dot)\(([^)]*)\)", text):
        names = re.findall(r"%[\w.-]+", operands)
        size = int(np.prod([int(n) for n in shape.split(",") if n]))
        found.append((",".join(sorted({kinds[name] for name in names})), size))
    return found


def gathered(text):
    """Shapes that all-gathers end in."""
    results = re.findall(r" = (\(.*?\)|\S+) all-gather(?:-start|-done)?\(", text)
    shapes = {shape for result in results for shape in re.findall(r"\w+\[([\d,]+)\]", result)}
    return sorted([int(n) for n in shape.split(",")] for shape in shapes)


if __name__ == "__main__":
    compiled, config = compiled_step(sys.argv[1], json.loads(sys.argv[2]))
    text, memory = compiled.as_text(), compiled.memory_analysis()
    counted = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    sizes = {f: getattr(memory, f) for f in ("argument_size_in_bytes", "temp_size_in_bytes", "output_size_in_bytes")}
    square = re.findall(rf"\w+\[[\d,]*{config.input.length},{config.input.length}[\d,]*\]", text)
    kernels = re.findall(r"splash_\w+", text)
    found = {"products": products(text), "collectives": counted, "kernels": sorted(set(kernels)), "square": square}
    found["gathered"] = gathered(text)
    print(json.dumps({**sizes, **found}))
