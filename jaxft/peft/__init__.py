"""Parameter-efficient fine-tuning: what is added to a network that stays as it was, and trains in its place.

A method is a frozen dataclass of its options (methods.py says what it answers). It puts modules into the slots that
layers have (`adapter`), before anything is allocated; from then on its parameters are parameters of the network like all
others, at paths with `adapter` in them. exchange.py says how the `peft` library calls the layers that they stand beside.
"""

PEFT = {
    "full": "jaxft.peft.methods:Full",
    "lora": "jaxft.peft.lora:Lora",
    "prefix": "jaxft.peft.prefix:Prefix",
    "prompt": "jaxft.peft.prompt:Prompt",
}

PEFT_TYPES = {  # what the `peft` library calls those that it knows as well
    "LORA": "jaxft.peft.lora:Lora",
    "PREFIX_TUNING": "jaxft.peft.prefix:Prefix",
    "PROMPT_TUNING": "jaxft.peft.prompt:Prompt",
}
