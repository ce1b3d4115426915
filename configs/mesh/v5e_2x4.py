"""Eight TPU v5e (2 x 4): BERT-base on GLUE SST-2, each chip with the whole state and an eighth of the rows.

A batch of 256 rows: 32 on each chip.

python -m jaxft.plan --config=configs/mesh/v5e_2x4.py --topology=v5e:2x4
python -m jaxft.main --config=configs/mesh/v5e_2x4.py
"""

from ml_collections import ConfigDict

from configs import bert_cls
from configs.mesh import check

VARIANTS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    check(arg)
    c = bert_cls.get_config("sst2")
    c.mesh.data = 8
    c.train.batch = 256
    c.evaluate.batch = 256
    c.optim.lr = 8e-5
    return c
