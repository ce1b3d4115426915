"""512 TPU v5p (8 x 8 x 8): Llama-3.1-70B, its state over 64 groups of eight, which share each layer's matrices.

A row of 4,096 tokens for every two chips: half of what a step could take, and twice as many updates.

python -m jaxft.plan --config=configs/mesh/v5p_8x8x8.py --topology=v5p:8x8x8
python -m jaxft.main --config=configs/mesh/v5p_8x8x8.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs import llama_clm

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; there are none")
    c = llama_clm.get_config("files")
    c.input.length = 4096
    c.model.update(hf="meta-llama/Llama-3.1-70B", dtype="bfloat16", scan=True, remat="full")
    c.optim.update(lr=1e-5)
    c.train.batch = 256
    c.evaluate.batch = 256
    c.mesh.update(data=1, fsdp=64, tensor=8)
    return c
