"""GPT-2, pretrained or trained further on running text: causal language modelling over a packed corpus.

python -m jaxft.main --config=configs/gpt_clm.py             a small GPT-2 from scratch on docstrings, byte-level BPE
python -m jaxft.main --config=configs/gpt_clm.py:files --config.data.train=train.jsonl    openai-community/gpt2 on your
    texts: a document a row in the column "text" (jsonl, parquet, csv, tsv; txt: a document a line)
python -m jaxft.main --config=configs/gpt_clm.py:chars --config.data.train=train.jsonl    a character model at nanoGPT's
    small CPU setting (4 layers x 128, rows of 64 characters, 2,000 steps); each text is one long row of characters
python -m jaxft.main --config=configs/gpt_clm.py:prepared --config.data.folder=runs/prepare    the model of the first
    command on a corpus of `python -m jaxft.prepare` (--config.tokenizer.name=bpe), which is tokenised already
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "chars", "prepared")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docstrings", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=1, on_bad="stop")  # a corpus is cut into rows of `length`: nothing is packed
    c.tokenizer = dict(name="bpe", vocab=8192, lowercase=False)
    c.task = dict(name="causal_lm", text="text", metric="", z=0.0)
    c.model = dict(
        name="gpt2",
        hf="",
        scratch=dict(
            layers=4,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=256,
            embed_dropout=0.1,
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
    c.optim = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, moments="float32", no_decay=())
    c.schedule = dict(name="cosine", warmup="5%", floor=0.1)
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
        log_every="50 steps",
    )
    c.evaluate = dict(every="25%", batch=16, patience=0)
    c.checkpoint = dict(every="25%", keep=2, export="best")
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
    if arg == "chars":
        chars(c)
    return c


def files(c: ConfigDict) -> None:
    """Your own texts: --config.data.train=train.jsonl."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.02)
    c.input.length = 1024
    c.model.update(hf="openai-community/gpt2")
    c.model.scratch.positions = 1024
    c.optim.update(lr=5e-5, weight_decay=0.01)
    c.train.update(batch=8, duration="3 epochs")
    c.evaluate.batch = 8


def chars(c: ConfigDict) -> None:
    """Each text one document, all of it one long row of characters."""
    c.data = dict(name="files", train="train.jsonl", validation="validation.jsonl", test="", holdout=0.0)
    c.input.length = 64
    c.tokenizer.update(name="char", vocab=256)
    c.model.scratch.update(positions=64, embed_dropout=0.0, dropout=0.0)
    c.train.update(batch=12, duration="2000 steps", log_every="100 steps")
    c.evaluate.update(every="500 steps", batch=48)
    c.checkpoint.every = "500 steps"
