"""One run for each kind of machine, with the mesh that fits it: take the nearest, and put your model in its place.

`python -m jaxft.plan` tells beforehand what a device would hold, and how fast a step can be.
"""

from ml_collections import ConfigDict

from configs import llama_clm


def decoder(hf: str, *, lr: float, batch: int, **mesh: int) -> ConfigDict:
    """A large decoder, trained further on files of texts in rows of 4,096 tokens."""
    c = llama_clm.get_config("files")
    c.input.length = 4096
    c.model.update(hf=hf, dtype="bfloat16", scan=True, remat="full")
    c.optim.lr = lr
    c.train.batch = batch
    c.evaluate.batch = batch
    c.mesh.update(**mesh)
    return c


def check(arg: str) -> None:
    """Raises ValueError for a variant: these files have none."""
    if arg:
        raise ValueError(f"variant {arg!r} is not known; there are none")
