"""Does an exported folder compute what the parameters in memory do?"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROWS, LENGTH = 4, 128  # positions past 64 show errors that short inputs hide


def largest_difference(folder: Path, net: Any, params: Any, dtype: str) -> tuple[float, str]:
    """(largest absolute difference of float32 logits on random ids with padding, who read the folder).

    The folder is read by transformers and torch where they are installed, else by jaxft. `dtype` is that of its
    tensors: the parameters in memory are rounded alike.
    """
    length = min(LENGTH, net.cfg.positions)
    rng = np.random.default_rng(0)
    # Any id but that of padding: some families number positions by where it stands.
    pad = net.cfg.pad_id
    ids_BL = ((pad + rng.integers(1, net.cfg.vocab, (ROWS, length))) % net.cfg.vocab).astype(np.int32)
    length_B = np.linspace(length, max(2, length // 4), ROWS).astype(int)
    mask_BL = (np.arange(length) < length_B[:, None]).astype(np.int32)
    ids_BL = np.where(mask_BL, ids_BL, pad)
    if net.family.KIND == "encdec":  # judges a text by its last token, which must be the one that ends texts
        eos = net.cfg.eos_id
        ids_BL = np.where(ids_BL == eos, (eos + 1 + (pad == eos + 1)) % net.cfg.vocab, ids_BL).astype(np.int32)
        ids_BL[np.arange(ROWS), length_B - 1] = eos
    type_BL = rng.integers(0, max(1, net.cfg.types), ids_BL.shape).astype(np.int32) * mask_BL
    inputs = {"ids": ids_BL, "mask": mask_BL, "type": type_BL}
    rounded = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)).astype(jnp.float32), params)
    expected = _ours(net, rounded, **inputs)
    if importlib.util.find_spec("torch"):
        return float(np.abs(_theirs(folder, **inputs) - expected).max()), "transformers"
    return float(np.abs(_reread(folder, net, **inputs) - expected).max()), "jaxft"


def _ours(net: Any, params: Any, *, ids: np.ndarray, mask: np.ndarray, type: np.ndarray) -> np.ndarray:
    rows, length = ids.shape
    position_BL = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    batch = {"ids": ids, "type": type, "segment": mask, "position": position_BL}
    batch["first"] = np.zeros((rows, 1), np.int32)
    return np.asarray(jax.jit(net.forward)(params, batch))[:, 0]


def _reread(folder: Path, net: Any, **inputs: np.ndarray) -> np.ndarray:
    from jaxft import build

    params, _ = build.parameters(net, folder, seed=0, reset_head=False)
    return _ours(net, jax.tree.map(lambda x: x.astype(jnp.float32), params), **inputs)


def _theirs(folder: Path, *, ids: np.ndarray, mask: np.ndarray, type: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, which takes no time here
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    given = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": type} if type.any() else {})
    with torch.no_grad():
        return model(**{name: torch.from_numpy(x.astype(np.int64)) for name, x in given.items()}).logits.numpy()
