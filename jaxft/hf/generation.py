"""generation_config.json: how the texts of a model are written, as far as its makers say."""

from pathlib import Path
from typing import Any

from jaxft.hf import files, save, tokenizer

FILE = "generation_config.json"
HEADS = {"decoder": "causal_lm", "encdec": "seq2seq_lm"}  # kind of a family -> its head that writes texts


def read(folder: Path) -> dict[str, Any]:
    return files.read_json(folder, FILE) if (folder / FILE).exists() else {}


def write(folder: Path, net: Any, source: Path | None) -> None:
    """Into an export of `net` with its tokenizer: that of the checkpoint `source`, else what must be said.

    What the file in `folder` says already stands over it. Nothing where the head writes no texts.
    """
    if net.head != HEADS.get(net.family.KIND):
        return
    said, over = {} if source is None else read(source), read(folder)
    said = {name: x for name, x in said.items() if name != "transformers_version"} or _of(folder, net.cfg)
    if "max_new_tokens" in over:
        said.pop("max_length", None)
    save.save_json(folder, FILE, {**said, **over})


def _of(folder: Path, cfg: Any) -> dict[str, Any]:
    encoder = tokenizer.load(folder)
    ids = {"bos_token_id": encoder.named.get("bos_token"), "eos_token_id": encoder.named.get("eos_token")}
    ids |= {"pad_token_id": encoder.pad_id}
    if hasattr(cfg, "start_id"):  # an encoder-decoder's network knows its own
        ids |= {"decoder_start_token_id": cfg.start_id, "eos_token_id": cfg.eos_id, "pad_token_id": cfg.pad_id}
    return {name: token for name, token in ids.items() if token is not None}
