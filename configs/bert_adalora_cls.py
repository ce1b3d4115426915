"""A classifier that is an AdaLoRA of a BERT: ranks go where they matter most while it trains (Zhang et al. 2023).

python -m jaxft.main --config=configs/bert_mlm.py               first: the BERT of the embedded run, runs/bert_mlm/hf
python -m jaxft.main --config=configs/bert_adalora_cls.py       docstrings -> library
python -m jaxft.main --config=configs/bert_adalora_cls.py:sst2  of google-bert/bert-base-cased on GLUE SST-2 (GPU, TPU)
python -m jaxft.main --config=configs/bert_adalora_cls.py:files --config.data.train=train.jsonl    of BERT-base on your
    data
"""

from ml_collections import ConfigDict

from configs import bert_lora_cls

VARIANTS = bert_lora_cls.VARIANTS


def get_config(arg: str = "") -> ConfigDict:
    c = bert_lora_cls.get_config(arg)
    c.peft = dict(
        name="adalora",
        target="all-linear",
        init_rank=12,
        target_rank=8,
        alpha=32.0,
        dropout=0.0,
        tinit="10%",  # of the run: until then every rank is there
        tfinal="30%",  # for so long at the end they stay as they are
        delta_t=10,
        beta1=0.85,
        beta2=0.85,
        orth=0.5,
        modules_to_save=(),
    )
    c.checkpoint.export = "last"  # before the end there are more ranks than asked for
    return c
