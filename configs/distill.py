"""A small model taught by a larger one: knowledge distillation, of classifiers and of language models.

python -m jaxft.main --config=configs/bert_cls.py           first: the teacher of the embedded run, runs/bert_cls/hf
python -m jaxft.main --config=configs/distill.py            docstrings -> library, a BERT of a quarter of its width
python -m jaxft.main --config=configs/distill.py:files --config.data.train=train.jsonl    DistilBERT on your rows,
    taught by what bert_cls.py:files has left in runs/bert_cls
python -m jaxft.main --config=configs/distill.py:sst2       DistilBERT on GLUE SST-2, taught by BERT-base in
    runs/sst2/hf, which bert_cls.py:sst2 --workdir=runs/sst2 leaves (TPU or GPU)
python -m jaxft.main --config=configs/distill.py:lm --config.data.train=train.jsonl    distilgpt2 on your texts, taught
    by openai-community/gpt2-medium, layer by layer (TPU or GPU)

The teacher may be of another family: its tokenizer must be the model's. A model of random weights takes that of the
teacher. What is exported is an ordinary model.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "sst2", "lm")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docstrings", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=12, on_bad="stop")
    c.tokenizer = dict(name="wordpiece", vocab=8192, lowercase=True)
    c.task = dict(
        name="distill",
        of=dict(name="cls", text="text", pair="", label="label", smoothing=0.0, metric=""),
        teacher="runs/bert_cls/hf",
        temperature=2.0,
        alpha=0.5,
        hidden=0.0,
        match="mse",
        layers=(),
    )
    c.model = dict(
        name="bert",
        hf="",
        scratch=dict(
            layers=1,
            d_model=32,
            d_ff=128,
            heads=2,
            positions=256,
            init_std=0.18,
            dropout=0.1,
            attention_dropout=0.0,
        ),
        override=dict(),
        dtype="auto",  # bfloat16 on TPU and GPU, float32 on CPU
        param_dtype="float32",
        frozen_dtype="",
        scan=False,
        remat="none",
        attention="auto",  # or "dense", "chunked" (memory linear in the length), "cudnn" (GPU), "splash" (TPU)
        reset_head=False,
    )
    c.peft = dict(name="full")  # or "lora", ...: what is added to weights that stay (docs/peft.md)
    c.optim = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=8,
        duration="6 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.999,
        offload=False,  # True: the optimizer's state lives in the host's memory
        max_bad_steps=5,
        log_every="100 steps",
    )
    c.evaluate = dict(every="1 epoch", batch=16, patience=0)
    c.checkpoint = dict(every="1 epoch", keep=2, export="best")
    c.mesh = dict(data=-1, fsdp=1, tensor=1, context=1, expert=1)
    c.sharding = dict(
        params=dict(V="tensor", D="fsdp", F="tensor", HK="tensor", GK="tensor", E="expert"),
        activations=dict(
            B=("data", "fsdp", "expert"), L="context", V="tensor", F="tensor", H="tensor", G="tensor", E="expert"
        ),
    )
    c.log = dict(tensorboard=True, wandb="")
    c.profile = dict(steps=())  # (10, 13) traces these steps, the last one included
    c.spikes = dict(sigma=0.0, window=128, action="say", max_rollbacks=3)  # sigma 0.0: nobody looks for any
    if arg == "files":
        files(c)
    if arg == "sst2":
        sst2(c)
    if arg == "lm":
        lm(c)
    return c


def files(c: ConfigDict) -> None:
    """Your own rows: --config.data.train=train.jsonl (or .csv, .tsv, .parquet, each also .gz)."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.1)
    c.input.update(length=128, pack=16)
    c.model.update(hf="distilbert/distilbert-base-cased")
    c.model.scratch.positions = 128
    c.optim.update(lr=5e-5, weight_decay=0.01)
    c.train.update(batch=16, duration="3 epochs", ema=0.0)
    c.evaluate.batch = 32


def sst2(c: ConfigDict) -> None:
    """GLUE SST-2, whose test labels are hidden: validation is what is reported."""
    c.data = dict(name="tfds", builder="glue/sst2", data_dir="", train="train", validation="validation", test="")
    c.input = dict(length=128, pack=16, on_bad="stop")
    c.task.of.text = "sentence"
    c.task.teacher = "runs/sst2/hf"
    c.model.update(hf="distilbert/distilbert-base-cased", dtype="bfloat16")
    c.optim.update(lr=5e-5, weight_decay=0.01)
    c.train.update(batch=32, duration="3 epochs", ema=0.0)
    c.evaluate.update(every="25%", batch=64)


def lm(c: ConfigDict) -> None:
    """Your own texts: --config.data.train=train.jsonl. The student's 6 blocks follow every fourth of the teacher's."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.02)
    c.input = dict(length=1024, pack=1, on_bad="stop")
    c.task.of = dict(name="causal_lm", text="text", metric="", z=0.0)
    c.task.teacher = "openai-community/gpt2-medium"
    c.task.update(hidden=1.0, match="cosine", layers=("1:4", "2:8", "3:12", "4:16", "5:20", "6:24"))
    c.model.update(hf="distilbert/distilgpt2", dtype="bfloat16")
    c.model.scratch.positions = 1024
    c.optim.update(lr=5e-5, weight_decay=0.01)
    c.train.update(batch=8, duration="3 epochs", ema=0.0)
    c.evaluate.update(every="25%", batch=8)
