"""Preferences: a model that is made to give the chosen response rather than the rejected one (DPO, IPO, ORPO, KTO).

The embedded run took 7 minutes of CPU time, from nothing: 0.78 of the pairs of test are right (docs/results.md).

python -m jaxft.main --config=configs/dpo.py                 a small Llama from scratch that prefers what a function's
    docstring says to what another one's says
python -m jaxft.main --config=configs/dpo.py:files --config.data.train=train.jsonl    HuggingFaceTB/SmolLM2-360M-
    Instruct on your rows {"prompt": ..., "chosen": ..., "rejected": ...}: texts, or messages with
    --config.task.dialect=messages; two whole conversations with --config.task.text="('chosen','rejected')" as well
python -m jaxft.main --config=configs/dpo.py:kto --config.data.train=train.jsonl      the same by KTO on your rows
    {"prompt": ..., "completion": ..., "label": true or false}
What the weights before training say of each response is computed first, and kept in the run folder.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "kto")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docpairs", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=64, pack=2, on_bad="stop")  # length: of a prompt with a response; a row has room for two
    c.tokenizer = dict(name="chat", vocab=4096, lowercase=False)
    c.task = dict(
        name="dpo",
        dialect="prompt",
        text=("prompt", "chosen", "rejected"),
        label="",  # of "kto": column that says whether a single response is good
        system="",  # column with what the system says first
        tools="",  # column with the tools that may be called
        too_long="cut",  # or "drop", "stop"
        template="",  # a file with another chat template than the tokenizer's
        date="2026-01-01",  # what a template is told that asks for the day
        objective="dpo",  # or "ipo", "orpo", "kto"
        beta=0.1,
        smoothing=0.0,  # above 0: conservative DPO
        desirable=1.0,  # weights of "kto"
        undesirable=1.0,
        metric="",
    )
    c.model = dict(
        name="llama",
        hf="",
        scratch=dict(layers=2, d_model=128, d_ff=384, heads=4, positions=64, tied=True, init_std=0.04),
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
    c.schedule = dict(name="linear", warmup="10%", floor=0.0)
    c.train = dict(
        batch=16,
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
    c.evaluate = dict(every="50%", batch=16, patience=0)
    c.checkpoint = dict(every="50%", keep=2, export="best")
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
    if arg == "kto":
        c.task.update(text=("prompt", "completion"), label="label", objective="kto")
    return c


def files(c: ConfigDict) -> None:
    """Your own preferences, from a model that can already talk."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.05)
    c.input.update(length=1024, pack=2)
    c.model.update(hf="HuggingFaceTB/SmolLM2-360M-Instruct", remat="dots")
    c.model.scratch.positions = 1024
    c.optim.update(lr=1e-6, b2=0.999, weight_decay=0.0)
    c.train.update(batch=16, duration="1 epochs", log_every="10 steps")
    c.evaluate.update(every="25%", batch=16)
    c.checkpoint.every = "50%"
