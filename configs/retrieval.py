"""Vectors of texts: search by meaning (a query finds its passage), and how similar two texts are.

The embedded run took ten minutes of CPU time, from nothing, and reached MRR@10 0.50 on test (docs/results.md).

python -m jaxft.main --config=configs/retrieval.py           docstrings by their summaries, a small BERT from scratch
python -m jaxft.main --config=configs/retrieval.py:files --config.data.train=train.jsonl
    sentence-transformers/all-MiniLM-L6-v2 on your rows: a text and the one that belongs to it; texts that seem to
    belong to it and do not: --config.task.negatives=COLUMN
python -m jaxft.main --config=configs/retrieval.py:stsb      the same on pairs with a score, GLUE STS-B by TFDS

The exported folder opens in sentence-transformers: SentenceTransformer("runs/retrieval/hf").encode(texts).
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "stsb")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="summaries", data_dir="")  # data_dir "": a private cache folder
    # length: the most tokens of a text. A row has room for the texts of one pair, and holds up to `pack` pairs.
    c.input = dict(length=96, pack=4, on_bad="stop")
    c.tokenizer = dict(name="wordpiece", vocab=8192, lowercase=True)
    c.task = dict(
        name="retrieval",
        text="summary",
        pair="text",
        negatives="",
        pooling="mean",  # or "first", "last"
        scale=20.0,
        symmetric=True,
        metric="",
    )
    c.model = dict(
        name="bert",
        hf="",
        scratch=dict(
            layers=2,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=96,
            init_std=0.05,
            dropout=0.0,
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
    c.optim = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=32,
        duration="5 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.0,
        offload=False,  # True: the optimizer's state lives in the host's memory
        max_bad_steps=5,
        log_every="50 steps",
    )
    c.evaluate = dict(every="1 epoch", batch=32, patience=0)
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
    if arg:
        files(c)
    if arg == "stsb":
        # The scores of its test split are hidden.
        c.data = dict(name="tfds", builder="glue/stsb", data_dir="", train="train", validation="validation", test="")
        c.task = dict(name="similarity", text="sentence1", pair="sentence2", label="label", most=5.0)
        c.task.update(pooling="mean", metric="")
    return c


def files(c: ConfigDict) -> None:
    """Your own rows: --config.data.train=train.jsonl (or .csv, .tsv, .parquet, each also .gz)."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.1)
    c.input.update(length=128, pack=8)
    c.task.update(text="text", pair="pair")
    c.model.update(hf="sentence-transformers/all-MiniLM-L6-v2")
    c.model.scratch.positions = 128
    c.optim.update(lr=2e-5)
    c.train.update(batch=16, duration="2 epochs")
