"""512 TPU v5p (8 x 8 x 8): Llama-3.1-70B, its state over 64 groups of eight, which share each layer's matrices.

A row of 4,096 tokens for every two chips: half of what a step could take, and twice as many updates.

python -m jaxft.plan --config=configs/mesh/v5p_8x8x8.py --topology=v5p:8x8x8
python -m jaxft.main --config=configs/mesh/v5p_8x8x8.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs.mesh import check, decoder

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    return decoder("meta-llama/Llama-3.1-70B", lr=1e-5, batch=256, data=1, fsdp=64, tensor=8)
