"""BERT for text classification.

The embedded run took 3 min 20 s on two CPU cores, from nothing, and reached 0.875 on test (docs/results.md).

python -m jaxft.main --config=configs/bert_cls.py            docstrings -> library, a small BERT from scratch
python -m jaxft.main --config=configs/bert_cls.py:sst2       google-bert/bert-base-cased on GLUE SST-2 (TPU or GPU)
python -m jaxft.main --config=configs/bert_cls.py:files --config.data.train=train.jsonl    BERT-base on your data
:files takes one class a row, or a pair of texts (--config.task.name=pair --config.task.pair=COLUMN);
:regression a number a row (similarity, rating); :multilabel any number of labels a row.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "sst2", "files", "regression", "multilabel")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docstrings", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=12, on_bad="stop")
    c.tokenizer = dict(name="wordpiece", vocab=8192, lowercase=True)
    c.task = dict(name="cls", text="text", pair="", label="label", smoothing=0.0, metric="")
    c.model = dict(
        name="bert",
        hf="",
        # One layer scores as high as two, in a third of the time: of the last layer only the first token is computed.
        # Weights of this width start larger than BERT's 0.02, or that token hears little of the others for an epoch
        # (docs/log.md).
        scratch=dict(
            layers=1,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=256,
            init_std=0.09,
            dropout=0.2,
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
    if arg == "sst2":
        sst2(c)
    if arg in ("files", "regression", "multilabel"):
        files(c)
    if arg == "regression":
        c.task = dict(name="regression", text="text", pair="", label="score", metric="")
    if arg == "multilabel":
        # separator "": the column holds lists; "|" would part text such as "a|b". Columns of 0 and 1: label="a,b".
        c.task = dict(name="multilabel", text="text", pair="", label="labels", metric="", separator="")
        c.task.update(threshold=0.5, smoothing=0.0)
    return c


def sst2(c: ConfigDict) -> None:
    """BERT-base on GLUE SST-2, whose test labels are hidden: validation is what is reported."""
    c.data = dict(name="tfds", builder="glue/sst2", data_dir="", train="train", validation="validation", test="")
    c.input = dict(length=128, pack=16, on_bad="stop")
    c.task.text = "sentence"
    c.model.update(hf="google-bert/bert-base-cased", dtype="bfloat16")
    c.optim.update(lr=3e-5, weight_decay=0.01)
    c.train.update(batch=32, duration="3 epochs", ema=0.0)
    c.evaluate.update(every="25%", batch=64)


def files(c: ConfigDict) -> None:
    """Your own rows: --config.data.train=train.jsonl (or .csv, .tsv, .parquet, each also .gz).

    From BERT-base; for random weights --config.model.hf= --config.optim.lr=1e-3.
    """
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.1)
    c.input.update(length=128, pack=16)
    c.model.update(hf="google-bert/bert-base-cased")
    c.model.scratch.positions = 128
    c.optim.update(lr=3e-5, weight_decay=0.01)
    c.train.update(batch=16, duration="3 epochs", ema=0.0)  # an average over 1,000 steps is for longer runs
    c.evaluate.batch = 32
