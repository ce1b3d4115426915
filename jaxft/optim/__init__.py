"""Optimizers, learning-rate schedules, and parameters addressed by path.

An optimizer is a function of its config options and of three things the program gives (`schedule`, `decay_mask`,
`multiplier`: see decoupled.py). A schedule is a function of the step and of `total` and `warmup`, both in steps.
"""

OPTIMIZERS = {
    "adafactor": "jaxft.optim.adafactor:adafactor",
    "adamw": "jaxft.optim.adamw:adamw",
    "lion": "jaxft.optim.lion:lion",
    "sgd": "jaxft.optim.sgd:sgd",
}

SCHEDULES = {
    "constant": "jaxft.optim.schedules:constant",
    "cosine": "jaxft.optim.schedules:cosine",
    "inverse_sqrt": "jaxft.optim.schedules:inverse_sqrt",
    "linear": "jaxft.optim.schedules:linear",
    "wsd": "jaxft.optim.schedules:wsd",
}
