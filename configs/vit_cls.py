"""ViT for image classification.

The embedded run took 81 s on two CPU cores, from nothing, and reached 0.964 on test.
Of scikit-learn's models, on the same split and pixels, a logistic regression reaches 0.964 and an SVM 0.976.

python -m jaxft.main --config=configs/vit_cls.py             scikit-learn's digits, a small ViT from scratch
python -m jaxft.main --config=configs/vit_cls.py:cifar10     google/vit-base-patch16-224-in21k on CIFAR-10 (TPU or GPU)
python -m jaxft.main --config=configs/vit_cls.py:folder --config.data.folder=pictures    the same model on your images
:folder reads pictures/train/cat/1.png, pictures/train/dog/2.jpg, ...
"""

from ml_collections import ConfigDict

VARIANTS = ("", "cifar10", "folder")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.seed = 0
    c.data = dict(name="digits")
    # Tokens of an image: 8 x 8 pixels in patches of 2 x 2, and one for the whole.
    c.input = dict(length=17, pack=1, on_bad="stop")
    c.tokenizer = None  # no text
    c.task = dict(name="image_cls", image="image", label="label", smoothing=0.0, metric="", crop=0.6, flip=False)
    c.model = dict(
        name="vit",
        hf="",
        scratch=dict(
            image_size=8,
            patch_size=2,
            channels=3,
            layers=4,
            d_model=64,
            d_ff=256,
            heads=4,
            init_std=0.05,
            dropout=0.1,
        ),
        override=dict(),
        dtype="auto",  # bfloat16 on TPU and GPU, float32 on CPU
        param_dtype="float32",
        frozen_dtype="",
        scan=False,
        remat="none",
        attention="auto",
        reset_head=False,
    )
    c.peft = dict(name="full")  # or "lora", ...: what is added to weights that stay (docs/peft.md)
    c.optim = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, moments="float32", no_decay=())
    c.schedule = dict(name="cosine", warmup="6%", floor=0.0)
    c.train = dict(
        batch=32,
        duration="60 epochs",
        accumulate=1,
        clip=1.0,
        layer_decay=1.0,
        freeze=(),
        ema=0.99,
        offload=False,  # True: the optimizer's state lives in the host's memory
        max_bad_steps=5,
        log_every="100 steps",
    )
    c.evaluate = dict(every="5 epochs", batch=64, patience=0)
    c.checkpoint = dict(every="15 epochs", keep=2, export="last")
    c.mesh = dict(data=-1, fsdp=1, tensor=1, context=1, expert=1)
    c.sharding = dict(
        params=dict(D="fsdp", F="tensor", HK="tensor", GK="tensor"),
        activations=dict(B=("data", "fsdp"), F="tensor", H="tensor", G="tensor"),
    )
    c.log = dict(tensorboard=True, wandb="")
    c.profile = dict(steps=())  # (10, 13) traces these steps, the last one included
    c.spikes = dict(sigma=0.0, window=128, action="say", max_rollbacks=3)  # sigma 0.0: nobody looks for any
    if arg == "cifar10":
        base(c)
        c.data = dict(name="tfds", builder="cifar10", data_dir="", train="train[:95%]", validation="train[95%:]")
        c.data.test = "test"
    if arg == "folder":
        base(c)
        c.data = dict(name="images", folder="pictures", train="train", validation="", test="", holdout=0.1)
    return c


def base(c: ConfigDict) -> None:
    """ViT-B/16 (Dosovitskiy et al. 2020): 224 x 224 pixels in patches of 16 x 16."""
    c.input.length = 197
    c.task.update(crop=0.5, flip=True)
    c.model.update(hf="google/vit-base-patch16-224-in21k", dtype="bfloat16")
    c.optim.update(lr=5e-5, weight_decay=0.01)
    c.train.update(batch=32, duration="3 epochs", ema=0.0)
    c.evaluate.update(every="25%", batch=64)
    c.checkpoint.update(every="1 epoch", export="best")
