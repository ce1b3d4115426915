"""Eight GPUs of one machine: Llama-3.2-1B, its state shared out over all of them.

Matrix products are whole on each GPU; only parameters and gradients cross between them, by NVLink.

python -m jaxft.plan --config=configs/mesh/gpu_8.py --devices=8
python -m jaxft.main --config=configs/mesh/gpu_8.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs import llama_clm

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; there are none")
    c = llama_clm.get_config("files")
    c.input.length = 4096
    c.model.update(hf="meta-llama/Llama-3.2-1B", dtype="bfloat16", scan=True, remat="full")
    c.optim.update(lr=2e-5)
    c.train.batch = 16
    c.evaluate.batch = 16
    c.mesh.update(data=1, fsdp=8)
    return c
