"""A translator that is a T5 with bottleneck adapters: two in each block, and all else stays (Houlsby et al. 2019).

python -m jaxft.main --config=configs/mt.py                 first: the T5 of the embedded run, runs/mt/hf, which
    translates German number words into English ones
python -m jaxft.main --config=configs/t5_adapter_mt.py      the other direction, by adapters of it
python -m jaxft.main --config=configs/t5_adapter_mt.py:files --config.data.train='train.{de,en}.gz'    adapters of
    google-t5/t5-base on your own pairs (configs/mt.py says how they are given)
"""

from ml_collections import ConfigDict

from configs import mt

VARIANTS = ("", "files")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = mt.get_config(arg)
    c.peft = dict(name="houlsby", reduction=4, act="relu", modules_to_save=())
    c.optim.lr = 3e-3
    if arg == "files":
        c.model.hf = "google-t5/t5-base"
        c.task.prefix = "translate German to English: "
        c.optim.lr = 1e-3
    else:
        c.model.hf = "runs/mt/hf"
        c.task.update(source="en", target="de")
    return c
