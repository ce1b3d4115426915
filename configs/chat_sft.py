"""A chat model: trained on what the assistant says in conversations, and where it stops.

The embedded run took 10 minutes of CPU time, from nothing: perplexity 12.1 on test (docs/results.md).

python -m jaxft.main --config=configs/chat_sft.py            a small Llama from scratch that says what a function is
    for, by its name, and from which library it is; then: python -m jaxft.generate --run=runs/chat_sft --chat
python -m jaxft.main --config=configs/chat_sft.py:files --config.data.train=train.jsonl    HuggingFaceTB/SmolLM2-360M-
    Instruct on your conversations: rows {"messages": [{"role": ..., "content": ...}, ...]}, or another dialect:
    --config.task.dialect=sharegpt --config.task.text="('conversations',)"
    --config.task.dialect=prompt   --config.task.text="('prompt','response')"
    --config.task.dialect=alpaca   --config.task.text="('instruction','input','output')"
    Qwen 3 writes earlier answers without their thoughts: with --config.model.hf=Qwen/Qwen3-0.6B and several turns a row
    also --config.task.turns=last
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docchat", data_dir="")  # data_dir "": a private cache folder
    c.input = dict(length=256, pack=8, on_bad="stop")
    c.tokenizer = dict(name="chat", vocab=4096, lowercase=False)
    c.task = dict(
        name="chat",
        dialect="messages",
        text=("messages",),
        system="",  # column with what the system says first
        tools="",  # column with the tools that may be called
        turns="all",  # or "last"
        too_long="cut",  # or "drop", "stop"
        template="",  # a file with another chat template than the tokenizer's
        date="2026-01-01",  # what a template is told that asks for the day
        metric="",
    )
    c.model = dict(
        name="llama",
        hf="",
        scratch=dict(layers=3, d_model=128, d_ff=384, heads=4, positions=256, tied=True, init_std=0.04),
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
    c.optim = dict(name="adamw", lr=2e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, moments="float32", no_decay=())
    c.schedule = dict(name="cosine", warmup="5%", floor=0.1)
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
    if arg == "files":
        files(c)
    return c


def files(c: ConfigDict) -> None:
    """Your own conversations, from a model that was made for them."""
    c.data = dict(name="files", train="train.jsonl", validation="", test="", holdout=0.05)
    c.input.update(length=2048, pack=16)
    c.model.update(hf="HuggingFaceTB/SmolLM2-360M-Instruct", remat="dots")
    c.model.scratch.positions = 2048
    c.optim.update(lr=1e-5, b2=0.999, weight_decay=0.0)
    c.train.update(batch=16, duration="2 epochs", log_every="10 steps")
    c.evaluate.update(every="25%", batch=16)
    c.checkpoint.every = "50%"
