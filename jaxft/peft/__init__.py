"""Parameter-efficient fine-tuning: what is added to a network that stays as it was, and trains in its place.

A method is a frozen dataclass of its options (methods.py says what it answers). It puts modules into the slots that
layers have (`adapter`), before anything is allocated; from then on its parameters are parameters of the network like
all others, at paths with `adapter` in them. exchange.py says how the `peft` library calls the layers beside them.
"""

PEFT = {
    "adalora": "jaxft.peft.adalora:AdaLora",
    "bitfit": "jaxft.peft.bitfit:BitFit",
    "full": "jaxft.peft.methods:Full",
    "houlsby": "jaxft.peft.bottleneck:Houlsby",
    "ia3": "jaxft.peft.ia3:Ia3",
    "lora": "jaxft.peft.lora:Lora",
    "pfeiffer": "jaxft.peft.bottleneck:Pfeiffer",
    "prefix": "jaxft.peft.prefix:Prefix",
    "prompt": "jaxft.peft.prompt:Prompt",
}

PEFT_TYPES = {  # what the `peft` library calls those that it knows as well
    "ADALORA": "jaxft.peft.adalora:AdaLora",
    "IA3": "jaxft.peft.ia3:Ia3",
    "LORA": "jaxft.peft.lora:Lora",
    "PREFIX_TUNING": "jaxft.peft.prefix:Prefix",
    "PROMPT_TUNING": "jaxft.peft.prompt:Prompt",
}

ADAPTERHUB = {  # what the `adapters` library calls bottleneck adapters
    "double_seq_bn": "jaxft.peft.bottleneck:Houlsby",
    "seq_bn": "jaxft.peft.bottleneck:Pfeiffer",
}
