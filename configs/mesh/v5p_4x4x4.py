"""64 TPU v5p (4 x 4 x 4): Llama-3.1-8B, its state over 16 groups of four, which share each layer's matrices.

A model as small as this for so many chips would do without `tensor`; larger ones need it, and so it is shown.

python -m jaxft.plan --config=configs/mesh/v5p_4x4x4.py --topology=v5p:4x4x4
python -m jaxft.main --config=configs/mesh/v5p_4x4x4.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs.mesh import check, decoder

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    return decoder("meta-llama/Llama-3.1-8B", lr=2e-5, batch=64, data=1, fsdp=16, tensor=4)
