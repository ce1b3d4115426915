"""Two slices of 64 TPU v5p: Llama-3.1-8B. Each slice has the whole state; gradients alone cross between slices.

`data` is what slices share out: over the data centre's network a step sends the gradients once.

python -m jaxft.plan --config=configs/mesh/v5p_4x4x4_two_slices.py --topology=v5p:4x4x4 --slices=2
python -m jaxft.main --config=configs/mesh/v5p_4x4x4_two_slices.py --config.data.train=train.jsonl
"""

from ml_collections import ConfigDict

from configs import llama_clm

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; there are none")
    c = llama_clm.get_config("files")
    c.input.length = 4096
    c.model.update(hf="meta-llama/Llama-3.1-8B", dtype="bfloat16", scan=True, remat="full")
    c.optim.update(lr=2e-5)
    c.train.batch = 128
    c.evaluate.batch = 128
    c.mesh.update(data=2, fsdp=16, tensor=4)
    return c
