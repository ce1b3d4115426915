"""Eight GPUs of one machine: Llama-3.2-1B, its state shared out over all of them.

Matrix products are whole on each GPU; only parameters and gradients cross between them, by NVLink.

python -m jaxft.plan --config=configs/mesh/gpu_8.py --devices=8
python -m jaxft.main --config=configs/mesh/gpu_8.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs.mesh import check, decoder

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    return decoder("meta-llama/Llama-3.2-1B", lr=2e-5, batch=16, data=1, fsdp=8)
