"""Writes tests/golden/bert.npz: a tiny random BERT of transformers, its inputs and its logits.

    python tests/golden/make_bert.py

A run without torch checks its numbers against that file; with torch, tests/models/test_bert_parity.py checks them live.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).with_name("bert.npz")

# Unlike the defaults wherever a default could hide a mistake: odd sizes, an eps that shows, more than 64 positions.
CONFIG = {
    "vocab_size": 101,
    "max_position_embeddings": 80,
    "type_vocab_size": 2,
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-3,
    "num_labels": 5,
}


def tiny_bert(kind: Any = transformers.BertForSequenceClassification) -> Any:
    """A BERT in evaluation mode; parameters drawn wide, so that no bias is 0, no scale 1 and attention is not flat."""
    torch.manual_seed(0)
    model = kind(transformers.BertConfig(**CONFIG, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    return model.eval()


def inputs() -> dict[str, np.ndarray]:
    """Three texts of 72, 50 and 3 tokens, padded on the right; the second is a pair."""
    rng = np.random.default_rng(0)
    ids_BL = rng.integers(1, CONFIG["vocab_size"], (3, 72))
    mask_BL = np.arange(72) < np.array([[72], [50], [3]])
    types_BL = np.where(mask_BL & (np.arange(72) >= np.array([[99], [20], [99]])), 1, 0)
    return {"ids": np.where(mask_BL, ids_BL, 0), "mask": mask_BL.astype(np.int64), "types": types_BL}


def logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[B, C] as transformers computes them."""
    with torch.no_grad():
        ids_BL, mask_BL, types_BL = (torch.tensor(batch[key]) for key in ("ids", "mask", "types"))
        return model(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=types_BL).logits.numpy()


def main() -> None:
    model, batch = tiny_bert(), inputs()
    config = model.config.to_dict() | {"architectures": ["BertForSequenceClassification"]}
    np.savez_compressed(
        GOLDEN,
        config=np.array(json.dumps(config)),
        logits=logits(model, batch),
        **{f"input/{key}": value.astype(np.int32) for key, value in batch.items()},
        **{f"weight/{name}": value.numpy() for name, value in model.state_dict().items()},
    )
    sys.stdout.write(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes, transformers {transformers.__version__}\n")


if __name__ == "__main__":
    main()
