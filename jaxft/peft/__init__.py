"""Parameter-efficient fine-tuning: what is added to a network that stays as it was, and trains in its place.

A method is a frozen dataclass of its options (methods.py says what it answers). It puts modules into the slots that
layers have (`adapter`), before anything is allocated; from then on its parameters are parameters of the network like
all others, at paths with `adapter` in them. exchange.py says how the `peft` library calls the layers beside them.
"""

PEFT = {
    "full": "jaxft.peft.methods:Full",
    "lora": "jaxft.peft.lora:Lora",
    "adalora": "jaxft.peft.adalora:AdaLora",
    "ia3": "jaxft.peft.ia3:Ia3",
    "bitfit": "jaxft.peft.bitfit:BitFit",
}

PEFT_TYPES = {  # what the `peft` library calls those that it knows as well
    "LORA": "jaxft.peft.lora:Lora",
    "ADALORA": "jaxft.peft.adalora:AdaLora",
    "IA3": "jaxft.peft.ia3:Ia3",
}
