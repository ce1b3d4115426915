"""One GPU: BERT-base on GLUE SST-2.

Nothing is shared out, and the blocks are unrolled: a scan would save compile time only.

python -m jaxft.plan --config=configs/mesh/gpu_1.py --devices=1
python -m jaxft.main --config=configs/mesh/gpu_1.py
"""

from ml_collections import ConfigDict

from configs import bert_cls
from configs.mesh import check

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    c = bert_cls.get_config("sst2")
    c.mesh.data = 1
    return c
