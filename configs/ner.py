"""A tag for every word: named entities, parts of speech.

The embedded run took 65 s on two CPU cores, from nothing, and reached 0.995 on test (docs/results.md).

python -m jaxft.main --config=configs/ner.py                 lines of Python, a small BERT from scratch
python -m jaxft.main --config=configs/ner.py:files --config.data.train=train.conll    google-bert/bert-base-cased
    on your sentences: .conll (.bio, .iob2: words first, tags last), .conllu (--config.task.label=upos), each also .gz;
    .jsonl or .parquet with lists of words and tags; or texts with spans {start, end, label}:
    --config.task.text=text --config.task.label=spans
python -m jaxft.main --config=configs/ner.py:conll2003       google-bert/bert-base-cased on CoNLL 2003 by TFDS
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "conll2003")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="pycode")
    c.input = dict(length=128, pack=12, on_bad="stop")
    c.tokenizer = dict(name="wordpiece", vocab=4096, lowercase=False)
    # metric "": f1 where tags mark entities (B-LOC, I-LOC, O), else accuracy.
    c.task = dict(name="token_cls", text="tokens", label="tags", metric="", smoothing=0.0)
    c.model = dict(
        name="bert",
        hf="",
        scratch=dict(
            layers=2,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=128,
            init_std=0.05,
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
    c.optim = dict(name="adamw", lr=2e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=8,
        duration="2 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.0,
        offload=False,  # True: the optimizer's state lives in the host's memory
        max_bad_steps=5,
        log_every="50 steps",
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
    if arg in ("files", "conll2003"):
        bert_base(c)
    if arg == "files":
        c.data = dict(name="files", train="train.conll", validation="", test="", holdout=0.1)
    if arg == "conll2003":
        c.data = dict(name="tfds", builder="conll2003", data_dir="", train="train", validation="dev", test="test")
        c.task.label = "ner"
    return c


def bert_base(c: ConfigDict) -> None:
    """From BERT-base; for random weights --config.model.hf= --config.optim.lr=1e-3."""
    c.model.update(hf="google-bert/bert-base-cased")
    c.optim.update(lr=5e-5)
    c.train.update(batch=8, duration="3 epochs")
