"""Prints what the `adapters` library computes with bottleneck adapters: the numbers of tests/peft/test_bottleneck.py.

It pins a version of transformers, so that it has an environment of its own: pip install adapters==1.3.0 torch; then
PYTHONPATH=. python -m tests.golden.make_bottleneck
"""

import zlib

import numpy as np

NAME = "golden"
COMMON = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
FIELDS = {
    "bert": COMMON
    | {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    },
    "gpt2": COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 40},
    "bart": COMMON
    | {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 40,
        "decoder_start_token_id": 0,
    },
}
CLASSES = {
    "bert": "BertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "bart": "BartForConditionalGeneration",
}
KINDS = {
    "seq_bn": {"reduction_factor": 4, "scaling": 1.5},
    "double_seq_bn": {"reduction_factor": 5, "cross_adapter": True},
}
IDS_BL = np.arange(3, 27).reshape(2, 12) * 7 % 96 + 3
TARGET_IDS_BT = IDS_BL[:, :5]


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that follows from its name, on every version of numpy; scales of norms are about 1."""
    wave = 1e4 * np.sin(np.arange(np.prod(shape)) * 12.9898 + zlib.crc32(name.encode()) % 1000).reshape(shape)
    scale = len(shape) == 1 and name.endswith(("LayerNorm.weight", "layer_norm.weight", "layernorm_embedding.weight"))
    scale = scale or (".ln_" in name and name.endswith(".weight"))
    return (0.6 * (wave % 1 - 0.5) + scale).astype(np.float32)


def logits_of(family: str, kind: str) -> np.ndarray:
    """The logits of the first text: of its last token those of a few ids, where there is one of every token."""
    import adapters
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(family, **FIELDS[family])
    model = getattr(transformers, CLASSES[family])(config)
    adapters.init(model)
    model.add_adapter(NAME, config=adapters.AdapterConfig.load(kind, **KINDS[kind]))
    model.set_active_adapters(NAME)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.tensor(numbers(name, tuple(tensor.shape))))
    inputs = {"input_ids": torch.tensor(IDS_BL)}
    if family == "bart":
        inputs["decoder_input_ids"] = torch.tensor(TARGET_IDS_BT)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    return shown(logits)


def shown(logits: np.ndarray) -> np.ndarray:
    return logits[:, :3] if logits.ndim == 2 else logits[:, -1, :6]


if __name__ == "__main__":
    for family in FIELDS:
        for kind in KINDS:
            print(family, kind, np.array2string(logits_of(family, kind), separator=", ", precision=8))
