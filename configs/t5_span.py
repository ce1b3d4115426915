"""T5, pretrained or trained further on running text: span corruption over a packed corpus.

python -m jaxft.main --config=configs/t5_span.py             a small T5 1.1 from scratch on docstrings, byte-level BPE
python -m jaxft.main --config=configs/t5_span.py:files --config.data.train=train.jsonl    google/t5-v1_1-base on your
    texts: a document a row in the column "text" (jsonl, parquet, csv, tsv; txt: a document a line)
python -m jaxft.main --config=configs/t5_span.py:prepared --config.data.folder=runs/prepare    the model of the first
    command on a corpus of `python -m jaxft.prepare` (--config.tokenizer.name=sentinels), which is tokenised already
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "prepared")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docstrings", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=1, on_bad="stop")  # a corpus is cut into rows of `length`: nothing is packed
    c.tokenizer = dict(name="sentinels", vocab=8192, lowercase=False)
    c.task = dict(name="span_corruption", text="text", metric="", rate=0.15, span=3.0)
    c.model = dict(
        name="t5",
        hf="",
        scratch=dict(
            layers=2,
            decoder_layers=2,
            d_model=128,
            d_ff=256,
            heads=4,
            head_dim=32,
            feed_forward="gated-gelu",
            tied=False,
            dropout=0.0,
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
    c.optim = dict(name="adamw", lr=2e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.0, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=8,
        duration="4 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.0,
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
    if arg == "prepared":
        c.data = dict(name="prepared", folder="runs/prepare")
        c.tokenizer = None  # the corpus brings its own
    return c


def files(c: ConfigDict) -> None:
    """Your own texts: --config.data.train=train.jsonl."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.02)
    c.input.length = 512
    c.model.update(hf="google/t5-v1_1-base")
    c.optim.update(lr=1e-4)
    c.train.update(batch=16, duration="3 epochs")
