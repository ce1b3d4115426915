"""What sentence-transformers reads of a model whose vectors of tokens become one of the text."""

from pathlib import Path
from typing import Any

from jaxft.hf import files, save
from jaxft.registry import UserError

MODULES, SETTINGS, OF_NETWORK = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING = "1_Pooling"  # a folder
FILES = (MODULES, SETTINGS, OF_NETWORK, f"{POOLING}/config.json")
KINDS = {"Transformer": "", "Pooling": POOLING, "Normalize": "2_Normalize"}  # module -> its folder; the last has none
MODES = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}  # ours -> pooling_mode_<theirs>
NEWER = {"mean": "mean", "cls": "first", "lasttoken": "last"}  # pooling_mode, since version 6 -> ours


def write(folder: Path, *, pooling: str, d_model: int, length: int) -> None:
    """Files that SentenceTransformer(folder) reads: network, pooling, vectors of length 1."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(KINDS.items())
    ]
    save.save_json(folder, MODULES, modules)
    save.save_json(folder, SETTINGS, {"similarity_fn_name": "cosine"})
    save.save_json(folder, OF_NETWORK, {"max_seq_length": length, "do_lower_case": False})
    (folder / POOLING).mkdir()
    modes = {f"pooling_mode_{theirs}": ours == pooling for ours, theirs in MODES.items()}
    save.save_json(folder / POOLING, "config.json", {"word_embedding_dimension": d_model, **modes})


def pooling(folder: Path) -> str | None:
    """How the vectors of tokens become one, by the files of a folder; None where there are none.

    Raises UserError for what is not implemented: other kinds of pooling, further layers.
    """
    if not (folder / MODULES).exists():
        return None
    with files.inside(folder, MODULES).open("rb") as stream:
        raw = stream.read(files.JSON_BYTES)
    # A list, which is checked as objects are.
    modules = files.parse_json(b'{"modules": ' + raw + b"}", str(folder / MODULES))["modules"]
    places = [(str(one.get("type")).rsplit(".", 1)[-1], one.get("path")) for one in modules if isinstance(one, dict)]
    # No place but the usual ones: a path may lead out of the folder.
    if places not in (list(KINDS.items()), list(KINDS.items())[:2]):
        found = ", ".join(f"{kind} in {path!r}" for kind, path in places) or "none"
        known = ", ".join(f"{kind} in {path!r}" for kind, path in KINDS.items())
        raise UserError(f"{folder / MODULES}: the modules {found} are not supported; only {known}")
    config = files.read_json(folder / POOLING, "config.json")
    on = _modes(config)
    if len(on) != 1 or on[0] not in MODES:
        raise UserError(f"{folder}: pooling by {' and '.join(on)} is not supported; only {', '.join(MODES)}")
    return on[0]


def max_length(folder: Path) -> int:
    """How many tokens of a text sentence-transformers reads; 0 where the folder does not say."""
    told = files.read_json(folder, OF_NETWORK).get("max_seq_length") if (folder / OF_NETWORK).exists() else None
    return told if isinstance(told, int) else 0


def _modes(config: dict[str, Any]) -> list[str]:
    """In our words where we have one."""
    if "pooling_mode" in config:
        newer = config["pooling_mode"]
        return [NEWER.get(mode, mode) for mode in map(str, newer if isinstance(newer, list) else [newer])]
    ours = {f"pooling_mode_{theirs}": name for name, theirs in MODES.items()}
    return [ours.get(name, name) for name, on in config.items() if name.startswith("pooling_mode_") and on]
