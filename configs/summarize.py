"""Summaries: a text made shorter. Scored by ROUGE: pip install '.[metrics]'.

The embedded run takes five minutes and shows the parts at work; a summariser needs pretrained weights
(docs/results.md).

python -m jaxft.main --config=configs/summarize.py          the first line of a docstring from the rest, a small T5 from
    scratch
python -m jaxft.main --config=configs/summarize.py:files --config.data.train=train.jsonl    facebook/bart-base on your
    own texts: rows with the columns "text" and "summary" (jsonl, csv, tsv, parquet)
python -m jaxft.main --config=configs/summarize.py:cnn_dailymail    facebook/bart-base on CNN / Daily Mail by TFDS
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "cnn_dailymail")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="summaries", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=96, pack=4, on_bad="stop")  # of sources; of targets: task.target_length
    c.tokenizer = dict(name="seq2seq", vocab=4096, lowercase=False)
    c.task = dict(
        name="seq2seq",
        source="text",
        target="summary",
        prefix="",
        metric="rougeL",
        smoothing=0.1,
        target_length=32,
        too_long="cut",  # or "drop"
        write=200,  # texts of the validation split that each evaluation writes and scores; 0: none
        write_last=-1,  # and of the test split at the end; -1: all
        beams=1,
        max_new_tokens=32,
        tokenize="13a",  # sacreBLEU's words; "zh" or "ja-mecab" of Chinese and Japanese summaries, for ROUGE too
    )
    c.model = dict(
        name="t5",
        hf="",
        scratch=dict(
            layers=2,
            decoder_layers=2,
            d_model=128,
            d_ff=512,
            heads=4,
            head_dim=32,
            feed_forward="gated-gelu",
            tied=False,
            dropout=0.1,
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
    c.optim = dict(name="adamw", lr=3e-3, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.0, moments="float32", no_decay=())
    c.schedule = dict(name="linear", warmup="6%", floor=0.0)
    c.train = dict(
        batch=32,
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
    if arg == "files":
        c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.05)
    if arg == "cnn_dailymail":
        c.data = dict(
            name="tfds", builder="cnn_dailymail", data_dir="", train="train", validation="validation", test="test"
        )
        c.task.update(source="article", target="highlights")
    if arg:
        bart(c)
    return c


def bart(c: ConfigDict) -> None:
    """From BART; longer texts are cut, as usual in summaries of news."""
    c.input.update(length=1024, pack=4)
    c.task.update(target_length=256, beams=4, max_new_tokens=142)
    c.model.update(hf="facebook/bart-base", remat="dots")
    c.optim.update(lr=3e-5, weight_decay=0.01)
    c.train.update(batch=32, duration="3 epochs")
    c.evaluate.update(every="25%", batch=32)
    c.checkpoint.every = "25%"
