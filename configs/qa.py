"""Answers to questions, each a piece of a text: extractive question answering as in SQuAD.

python -m jaxft.main --config=configs/qa.py                 questions about the parameters of docstrings, from scratch
python -m jaxft.main --config=configs/qa.py:files --config.data.train=train.json    bert-base-uncased on your
    questions: .json in the format of SQuAD, or .jsonl or .parquet with columns question, context and
    answers {text: [...], answer_start: [...]}, each also .gz. Questions without an answer:
    --config.task.unanswerable=True. Chinese: --config.task.rules=cmrc --config.model.hf=google-bert/bert-base-chinese
python -m jaxft.main --config=configs/qa.py:squad           google-bert/bert-base-uncased on SQuAD 1.1 by TFDS
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files", "squad")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="docquestions", data_dir="")
    c.input = dict(length=192, pack=6, on_bad="stop")
    c.tokenizer = dict(name="wordpiece", vocab=8192, lowercase=True)
    c.task = dict(
        name="span_qa",
        text="question",
        pair="context",
        label="answers",
        metric="",  # f1
        stride=48,  # tokens of the context that neighbouring windows share
        question_length=16,  # tokens of a question that are read
        answer_length=30,  # tokens of an answer, at most
        nbest=20,  # answers that are kept of each question
        unanswerable=False,  # whether questions may have no answer ...
        threshold=0.0,  # ... predicted where it scores by more than this above the best
        rules="squad",  # of the scores; "cmrc": characters of Chinese
    )
    c.model = dict(
        name="bert",
        hf="",
        scratch=dict(
            layers=2,
            d_model=128,
            d_ff=512,
            heads=4,
            positions=192,
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
    if arg in ("files", "squad"):
        bert_base(c)
    if arg == "files":
        c.data = dict(name="files", train="train.json", validation="", test="", holdout=0.1)
    if arg == "squad":
        c.data = dict(name="tfds", builder="squad/v1.1", data_dir="", train="train", validation="validation", test="")
    return c


def bert_base(c: ConfigDict) -> None:
    """From BERT-base; for random weights --config.model.hf= --config.optim.lr=1e-3."""
    c.input.update(length=384, pack=8)
    c.task.update(stride=128, question_length=64)
    c.model.update(hf="google-bert/bert-base-uncased")
    c.model.scratch.positions = 384
    c.optim.update(lr=3e-5)
    c.train.update(batch=16, duration="2 epochs")
