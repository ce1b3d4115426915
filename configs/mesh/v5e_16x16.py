"""256 TPU v5e (16 x 16): Mixtral-8x7B, an expert on each of eight devices, and the state over 32 groups of them.

The rows of eight chips meet where each expert is; a chip holds and gathers the kernels of its own expert alone. No
token is dropped, so each device has room for all rows of its group: 13.2 of 15.75 GiB.

python -m jaxft.plan --config=configs/mesh/v5e_16x16.py --topology=v5e:16x16
python -m jaxft.main --config=configs/mesh/v5e_16x16.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs.mesh import check, decoder

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    return decoder("mistralai/Mixtral-8x7B-v0.1", lr=1e-5, batch=256, data=1, fsdp=32, expert=8)
