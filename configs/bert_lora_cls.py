"""A classifier that is a LoRA of a BERT: the weights stay, thin products beside them train (Hu et al. 2021).

python -m jaxft.main --config=configs/bert_mlm.py            first: the BERT of the embedded run, runs/bert_mlm/hf
python -m jaxft.main --config=configs/bert_lora_cls.py       docstrings -> library, a LoRA of it and a new head
python -m jaxft.main --config=configs/bert_lora_cls.py:sst2  of google-bert/bert-base-cased on GLUE SST-2 (TPU or GPU)
python -m jaxft.main --config=configs/bert_lora_cls.py:files --config.data.train=train.jsonl    of BERT-base on your
    data

What is left in hf/ is an adapter, which the `peft` library opens; `python -m jaxft.export --merge` makes a whole model
of it. Another method is a section of its own: --config.peft="{'name': 'ia3'}" (docs/peft.md has them all).
"""

from ml_collections import ConfigDict

from configs import bert_cls

VARIANTS = ("", "sst2", "files")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = bert_cls.get_config(arg)
    c.peft = dict(
        name="lora",
        target="all-linear",  # or "attention", or regexes of paths
        rank=8,
        alpha=16.0,
        dropout=0.05,
        rslora=False,
        dora=False,
        b_rate=1.0,  # above 1: LoRA+
        init="default",  # or "gaussian", "pissa"
        modules_to_save=(),  # beside the head, which is new and trains whole
    )
    c.optim.update(lr=5e-4, weight_decay=0.0)
    c.train.ema = 0.0
    if arg == "":
        c.model.hf = "runs/bert_mlm/hf"
        c.model.override = dict(dropout=0.1)
        c.optim.lr = 3e-3
        c.train.duration = "4 epochs"
    return c
