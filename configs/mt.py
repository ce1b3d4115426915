"""Translation: a text in one language made into one in another. Scored by sacreBLEU and chrF: pip install '.[metrics]'.

The embedded run took four minutes of CPU time, from nothing, and reached BLEU 77 on test (docs/results.md).

python -m jaxft.main --config=configs/mt.py                 German number words into English ones, a small T5 from
    scratch
python -m jaxft.main --config=configs/mt.py:files --config.data.train='train.{de,en}.gz'    Helsinki-NLP/opus-mt-de-en
    on your own pairs: two text files that go line by line, the source's name first (quote it: a shell has braces of its
    own). Of .jsonl, .csv, .tsv or .parquet with two columns:
    --config.data.name=files --config.data.train=pairs.tsv --config.task.source=de --config.task.target=en
python -m jaxft.main --config=configs/mt.py:scratch --config.data.train='train.{de,en}.gz'    a T5 of 3 x 256 from
    random weights, for some ten thousand short pairs, with a tokenizer trained on both languages
python -m jaxft.main --config=configs/mt.py:wmt16           google-t5/t5-small on WMT 2016 German-English by TFDS
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "scratch", "wmt16")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="number_words", numbers=12_000)
    c.input = dict(length=64, pack=16, on_bad="stop")  # of sources; of targets: task.target_length
    c.tokenizer = dict(name="seq2seq", vocab=512, lowercase=False)  # one for both languages
    c.task = dict(
        name="seq2seq",
        source="de",
        target="en",
        prefix="",
        metric="bleu",
        smoothing=0.1,
        target_length=128,
        too_long="cut",  # or "drop"
        write=200,  # texts of the validation split that each evaluation writes and scores; 0: none
        write_last=-1,  # and of the test split at the end; -1: all
        beams=1,
        max_new_tokens=48,
        tokenize="13a",  # sacreBLEU's words; "zh" or "ja-mecab" of Chinese and Japanese targets
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
        batch=8,
        duration="8 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.0,
        offload=False,  # True: the optimizer's state lives in the host's memory
        max_bad_steps=5,
        log_every="50 steps",
    )
    c.evaluate = dict(every="2 epochs", batch=32, patience=0)
    c.checkpoint = dict(every="2 epochs", keep=2, export="best")
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
    if arg in ("files", "scratch"):
        c.input.length = 128
        c.data = dict(name="parallel", train="train.{de,en}.gz", validation="", test="", holdout=0.02)
        c.task.update(source="source", target="target", max_new_tokens=96)
    if arg == "files":
        checkpoint(c, "Helsinki-NLP/opus-mt-de-en")
    if arg == "scratch":
        scratch(c)
    if arg == "wmt16":
        c.data = dict(
            name="tfds",
            builder="wmt16_translate/de-en",
            data_dir="",
            train="train",
            validation="validation",
            test="test",
        )
        c.task.prefix = "translate German to English: "
        checkpoint(c, "google-t5/t5-small")
        c.train.update(duration="100000 steps")
        c.evaluate.every = c.checkpoint.every = "5000 steps"
    return c


def checkpoint(c: ConfigDict, hf: str) -> None:
    """From a pretrained translator."""
    c.input.update(length=256, pack=8)
    c.task.update(target_length=256, beams=4, max_new_tokens=128)
    c.model.update(hf=hf)
    c.optim.update(lr=1e-4)
    c.train.update(batch=32, duration="3 epochs")
    c.evaluate.update(every="25%")
    c.checkpoint.update(every="25%")


def scratch(c: ConfigDict) -> None:
    """Nothing pretrained: as many sentences as there are must do."""
    c.tokenizer.vocab = 8000
    c.model.scratch.update(layers=3, decoder_layers=3, d_model=256, d_ff=512, heads=4, head_dim=64, dropout=0.2)
    c.optim.update(lr=2e-3)
    c.train.update(batch=4, duration="15 epochs")
    c.evaluate.every = c.checkpoint.every = "3 epochs"
