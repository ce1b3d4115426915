"""ELECTRA, pretrained or trained further on running text: which tokens did a small masked LM replace?

The embedded run took 22 minutes of CPU time, from nothing, and is too short for the discriminator (docs/results.md).

python -m jaxft.main --config=configs/electra.py            a small ELECTRA from scratch on docstrings, WordPiece
python -m jaxft.main --config=configs/electra.py:files --config.data.train=train.jsonl    google/electra-small, both
    networks, on your texts: a document a row in the column "text" (jsonl, parquet, csv, tsv; txt: a document a line)
python -m jaxft.main --config=configs/electra.py:small    ELECTRA-Small from scratch on the English articles of TFDS
    wiki40b, in the paper's setting but for the length of the run (TPU or GPU)

hf/ is the discriminator, which is what it is all for, hf-generator/ the masked LM. A classifier starts from hf/:
python -m jaxft.main --config=configs/bert_cls.py --config.model.hf=runs/electra/hf
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "small")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docstrings", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=1, on_bad="stop")  # a corpus is cut into rows of `length`: nothing is packed
    c.tokenizer = dict(name="wordpiece", vocab=8192, lowercase=True)
    c.task = dict(
        name="detection",
        text="text",
        metric="",
        rate=0.15,
        whole_words=False,
        weight=50.0,
        generator=dict(d_model=64, d_ff=256, heads=2),
        generator_hf="",
    )
    c.model = dict(
        name="electra",
        hf="",
        scratch=dict(
            layers=2,
            d_embed=128,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=256,
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
    c.optim = dict(name="adamw", lr=2e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=8,
        duration="1 epochs",
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
    c.checkpoint = dict(every="1 epoch", keep=2, export="last")
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
    if arg == "small":
        small(c)
    return c


def files(c: ConfigDict) -> None:
    """Your own texts: --config.data.train=train.jsonl. Both networks go on from the hub's."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.02)
    c.input.length = 512
    c.task.generator = dict()
    c.task.generator_hf = "google/electra-small-generator"
    c.model.update(hf="google/electra-small-discriminator")
    c.model.scratch.positions = 512
    c.optim.update(lr=5e-5)
    c.train.update(batch=16, duration="3 epochs")


def small(c: ConfigDict) -> None:
    """14 million parameters, a generator of a quarter of the width, rows of 128 tokens (Clark et al. 2020, table 6)."""
    c.data = dict(name="tfds", builder="wiki40b/en", data_dir="", train="train", validation="validation", test="test")
    c.input.length = 128
    c.tokenizer.vocab = 30_522
    c.task.generator = dict(d_model=64, d_ff=256, heads=1)
    c.model.update(dtype="bfloat16")
    c.model.scratch = dict(layers=12, d_embed=128, d_model=256, d_ff=1024, heads=4, positions=512)
    c.optim.update(lr=5e-4, b2=0.999)
    c.schedule.warmup = "10000 steps"
    c.train.update(batch=128, duration="250000 steps", log_every="500 steps")
    c.evaluate.update(every="10%", batch=128)
    c.checkpoint.every = "2%"
