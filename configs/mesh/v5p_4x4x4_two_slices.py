"""Two slices of 64 TPU v5p: Llama-3.1-8B. Each slice has the whole state; gradients alone cross between slices.

`data` is what slices share out: over the data centre's network a step sends the gradients once.

python -m jaxft.plan --config=configs/mesh/v5p_4x4x4_two_slices.py --topology=v5p:4x4x4 --slices=2
python -m jaxft.main --config=configs/mesh/v5p_4x4x4_two_slices.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs.mesh import check, decoder

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    return decoder("meta-llama/Llama-3.1-8B", lr=2e-5, batch=128, data=2, fsdp=16, tensor=4)
