"""Does an exported folder compute what the parameters in memory do?"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.hf import adapters
from jaxft.layers import frozen
from jaxft.registry import UserError

Batch = dict[str, np.ndarray]
WHOLE = ("sequence", "multiple_choice")  # heads that judge whole inputs
ROWS, LENGTH = 4, 128  # positions past 64 show errors that short inputs hide


def largest_difference(folder: Path, net: Any, params: Any, dtype: str) -> tuple[float, str]:
    """(largest difference of float32 logits on random inputs, who read the folder).

    Absolute, or where the largest logit is above 1 relative to that one, as rounding is.
    The folder is read by transformers and torch where they are installed, else by jaxft. `dtype` is that of its
    tensors: the parameters in memory are rounded alike.
    """
    batch, given = _images(net) if net.family.KIND == "vision" else _texts(net)
    rounded = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)).astype(jnp.float32), frozen.decoded(params, dtype))
    expected = _ours(net, rounded, batch)
    needed = ("torch", "peft") if adapters.is_adapter(folder) else ("torch",)
    torch = all(importlib.util.find_spec(name) is not None for name in needed)
    found = _theirs(folder, net, given) if torch else _reread(folder, net, batch)
    if net.head not in WHOLE:  # logits of padding are nobody's, nor those of what `peft` puts before the texts
        found = found[:, -expected.shape[1] :]
        found, expected = found[batch["segment"] > 0], expected[batch["segment"] > 0]
    return float(
        np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    ), "transformers" if torch else "jaxft"


def _texts(net: Any) -> tuple[Batch, Batch]:
    """Random ids with padding, as we and as transformers take them."""
    length = min(LENGTH, net.cfg.positions, net.declared.most or LENGTH)
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
    position_BL = np.broadcast_to(np.arange(length, dtype=np.int32), ids_BL.shape)
    batch = {"ids": ids_BL, "type": type_BL, "segment": mask_BL, "position": position_BL}
    batch["first"] = np.zeros((ROWS, 1), np.int32)
    given = {"input_ids": ids_BL, "attention_mask": mask_BL} | ({"token_type_ids": type_BL} if type_BL.any() else {})
    if net.head == "seq2seq_lm":  # the decoder reads the same texts
        batch |= {"target_ids": ids_BL, "target_segment": mask_BL, "target_position": batch["position"]}
        given |= {"decoder_input_ids": ids_BL, "decoder_attention_mask": mask_BL}
    return batch, {name: array.astype(np.int64) for name, array in given.items()}


def _images(net: Any) -> tuple[Batch, Batch]:
    """Random pixels, as we and as transformers take them."""
    shape = (ROWS, net.cfg.image_size, net.cfg.image_size, net.cfg.channels)
    pixels_BYWI = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    batch = {"pixels": pixels_BYWI, "segment": np.ones((ROWS, net.cfg.positions), np.int32)}
    batch["first"] = np.zeros((ROWS, 1), np.int32)
    return batch, {"pixel_values": np.ascontiguousarray(pixels_BYWI.transpose(0, 3, 1, 2))}


def _ours(net: Any, params: Any, batch: Batch) -> np.ndarray:
    """[B, C] of a head that judges whole inputs, else [B, L, C]."""
    logits = np.asarray(jax.jit(net.forward)(params, batch))
    return logits[:, 0] if net.head in WHOLE else logits


def _reread(folder: Path, net: Any, batch: Batch) -> np.ndarray:
    from jaxft import build

    if adapters.is_adapter(folder):
        raise UserError("--verify of an adapter needs the peft library: pip install jaxft[peft]")
    params, _ = build.parameters(net, folder, seed=0, reset_head=False)
    return _ours(net, jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)


def _theirs(folder: Path, net: Any, given: Batch) -> np.ndarray:
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, which takes no time here
    cls = getattr(transformers, net.family.HF_ARCHITECTURES[net.head])
    # Eager attention is the definition of a model: transformers 4's faster ones leave out the soft cap of Gemma 2.
    how = dict(dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True)
    if adapters.is_adapter(folder):
        import peft

        config = transformers.AutoConfig.from_pretrained(str(folder))
        base = adapters.read_config(folder)["base_model_name_or_path"]
        try:
            model = peft.PeftModel.from_pretrained(cls.from_pretrained(base, config=config, **how), str(folder)).eval()
        except ValueError as error:
            raise UserError(f"--verify: peft {peft.__version__} cannot open this adapter: {error}", code=1) from error
    else:
        model = cls.from_pretrained(str(folder), **how).eval()
    if net.head == "multiple_choice":  # the texts are the choices of one question
        given = {name: array[None] for name, array in given.items()}
    with torch.no_grad():
        out = model(**{name: torch.from_numpy(array) for name, array in given.items()})
    if net.head == "multiple_choice":
        return out.logits.numpy().T
    if net.head == "span":
        return torch.stack((out.start_logits, out.end_logits), -1).numpy()
    return (out.last_hidden_state if net.head == "vectors" else out.logits).numpy()
