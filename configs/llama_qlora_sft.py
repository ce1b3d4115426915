"""A chat model by QLoRA: a decoder kept in four bits a weight, and a LoRA of it that trains (Dettmers et al. 2023).

python -m jaxft.main --config=configs/chat_sft.py                first: the Llama of the embedded run, runs/chat_sft/hf
python -m jaxft.main --config=configs/llama_qlora_sft.py         it learns to say another thing, docstrings' questions
python -m jaxft.main --config=configs/llama_qlora_sft.py:files --config.data.train=train.jsonl
    Llama-3.1-8B-Instruct on your conversations (configs/chat_sft.py says how they are given): fits one TPU v5e chip or
    a GPU of 16 GB, by python -m jaxft.plan --topology=v5e:1x1 (docs/results.md)
"""

from ml_collections import ConfigDict

from configs import chat_sft

VARIANTS = ("", "files")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = chat_sft.get_config(arg)
    c.model.frozen_dtype = "nf4"
    c.peft = dict(
        name="lora",
        target="all-linear",
        rank=16,
        alpha=32.0,
        dropout=0.0,
        rslora=False,
        dora=False,
        b_rate=1.0,
        init="default",
        modules_to_save=(),
    )
    c.optim.update(lr=2e-4, weight_decay=0.0)
    if arg == "files":
        c.model.update(hf="meta-llama/Llama-3.1-8B-Instruct", scan=True, remat="full")
        c.input.update(length=2048, pack=8)
        c.train.update(batch=16, accumulate=16)
    else:
        c.model.hf = "runs/chat_sft/hf"
        c.optim.lr = 2e-3
        c.train.duration = "1 epochs"
    return c
