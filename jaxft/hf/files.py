"""What a model folder holds, read with suspicion: somebody else wrote it.

Headers and indexes are parsed here, bounded in bytes and items, before any number in them is used. Every file that is
opened lies inside the folder, or behind the relative links that the hub's own cache is made of.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.registry import UserError

ADAPTER = "adapter_config.json"  # in a folder of an adapter
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The safetensors format allows headers of 100 MB, which take Python seconds and gigabytes to parse. 50,000 tensors in
# one file fit these two limits (some 100 bytes and 6 items each); parsing stays below a second and 200 MB.
JSON_BYTES = 10_000_000
JSON_ITEMS = 300_000

BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4},
}
UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".npy", ".npz")


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: `dtype` as in the header (F32, BF16, ...), `offset` in bytes from the start of the file."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def inside(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`, links followed.

    Raises UserError where `name` is not a plain file name, or where the file is absent, is no regular file, or lies
    neither in the folder nor in the blobs of the hub cache that the folder is a snapshot of.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise UserError(
            f"{folder}: {name!r} is not a plain file name; a model folder may only name files that lie in it"
        )
    root = folder.resolve()
    file = (root / name).resolve()
    # The folder may be one that lies in a snapshot.
    snapshot = next((one for one in (root, root.parent) if one.parent.name == "snapshots"), None)
    blobs = root if snapshot is None else snapshot.parent.parent / "blobs"
    if file.parent not in (root, blobs):
        raise UserError(f"{folder / name} is a link that leaves the folder; replace it by the file itself")
    if not file.exists():
        raise UserError(f"{folder / name} does not exist")
    if not stat.S_ISREG(file.stat().st_mode):
        raise UserError(f"{folder / name} is not a regular file")
    return file


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in `name`. Raises UserError where there is none, or where it is too large to be honest."""
    file = inside(folder, name)
    with file.open("rb") as stream:
        return parse_json(stream.read(JSON_BYTES + 1), str(folder / name))


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises UserError that begins with `where`."""
    if len(raw) > JSON_BYTES or sum(raw.count(mark) for mark in (b"[", b"{", b",")) > JSON_ITEMS:
        raise UserError(f"{where}: more than {JSON_BYTES:,} bytes or {JSON_ITEMS:,} items of JSON; refused")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8, and integers of thousands of digits
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object")
    return value


def header(file: Path, where: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one safetensors file; `where` is the name shown in errors.

    Raises UserError unless the tensors tile the file: none overlaps, no byte is left over, sizes follow from shapes.
    Source: the format section of the safetensors README.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{where}: truncated, or not a safetensors file ({size:,} bytes, a header of {length:,})")
        fields = parse_json(stream.read(min(length, JSON_BYTES + 1)), f"{where}: header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{where}: header: __metadata__ must map names to strings")
    tensors, spans = {}, []
    for name, entry in fields.items():
        dtype, shape, begin, end = _entry(entry, f"{where}: {name!r}")
        tensors[name] = Stored(file, 8 + length + begin, dtype, shape)
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise UserError(
                f"{where}: {name!r} begins at byte {begin:,}, not at {reached:,}: tensors overlap or leave a hole"
            )
        reached = end
    if reached != size - 8 - length:
        raise UserError(
            f"{where}: tensors take {reached:,} bytes, the file holds {size - 8 - length:,}: truncated or padded"
        )
    return tensors, metadata


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin, end of one header entry, each checked."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: a header entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UserError(f"{where}: dtype {dtype!r} is not known; known: {', '.join(BITS)}")
    if not _sizes(shape) or len(shape) > 16:
        raise UserError(f"{where}: shape must be at most 16 sizes of 0 or more")
    if not _sizes(offsets) or len(offsets) != 2:
        raise UserError(f"{where}: data_offsets must be two positions of 0 or more")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * BITS[dtype]:
        raise UserError(f"{where}: {offsets[1] - offsets[0]:,} bytes cannot be {dtype} of shape {shape}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def index(folder: Path) -> dict[str, Stored]:
    """Tensor name -> where it is, for a folder with one weight file or with shards and an index.

    Raises UserError for every way in which the files can be wrong, and for a folder that only holds unsafe formats.
    """
    if not has_weights(folder):
        raise UserError(no_weights(folder))
    if (folder / INDEX).exists():
        return _sharded(folder)
    return header(inside(folder, SINGLE), str(folder / SINGLE))[0]


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder."""
    state = hashlib.sha256()
    for file in sorted({stored.file for stored in index(folder).values()}):
        with file.open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


def has_weights(folder: Path) -> bool:
    return (folder / INDEX).exists() or (folder / SINGLE).exists()


def _sharded(folder: Path) -> dict[str, Stored]:
    where = folder / INDEX
    weight_map = read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{where}: weight_map must map tensor names to file names")
    shards = sorted(set(weight_map.values()))
    plain = {
        shard: inside(folder, shard) for shard in shards if (folder / shard).exists() or "/" in shard or "\\" in shard
    }
    if absent := [shard for shard in shards if shard not in plain]:
        raise UserError(f"{where} names files that are not there: {', '.join(absent)}; download the folder again")
    found: dict[str, Stored] = {}
    for shard, file in plain.items():
        tensors, _ = header(file, str(folder / shard))
        wrong = [name for name in tensors if weight_map.get(name) != shard]
        wrong += [name for name, there in weight_map.items() if there == shard and name not in tensors]
        if wrong:
            raise UserError(f"{where} and {shard} disagree about: {', '.join(sorted(wrong))}")
        found.update(tensors)
    return found


def no_weights(folder: Path, hub_id: str = "") -> str:
    """What to do about a folder without safetensors, or a snapshot of `hub_id`, which brings nothing else."""
    if (folder / ADAPTER).is_file():
        return (
            f"{hub_id or folder} is an adapter, and a whole model is needed: merge it first, by python -m jaxft.export "
            "--run=ITS_RUN --out=FOLDER --merge, or merge_and_unload of peft, and give that folder"
        )
    unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in UNSAFE) if folder.is_dir() else []
    if not unsafe and not hub_id:
        return f"{folder} has no {SINGLE} and no {INDEX}; is it a model folder?"
    only = ", ".join(unsafe) or "other formats at most, such as pytorch_model.bin"
    return (
        f"{hub_id or folder} has no safetensors weights, only {only}, which jaxft never opens: such files can run"
        " code. If you trust their source, convert them where PyTorch is installed, then use the new folder:\n"
        f'  python -c \'import transformers as t; m = "{hub_id or folder}"; c = t.AutoConfig.from_pretrained(m);'
        ' getattr(t, c.architectures[0]).from_pretrained(m).save_pretrained("converted");'
        ' t.AutoTokenizer.from_pretrained(m).save_pretrained("converted")\''
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises UserError where it is absent or broken, or where it asks for code of its own to be run.

    A mere offer of code (auto_map) is left to the family of model_type: some have become part of transformers since.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has no config.json; is it a Hugging Face model folder?")
    hf = read_json(folder, "config.json")
    for field in ("trust_remote_code", "custom_pipelines"):
        if hf.get(field):
            raise UserError(
                f"{folder / 'config.json'}: {field} asks for Python code from the model folder, which jaxft never runs;"
                " use a model whose architecture is part of transformers"
            )
    if "model_type" not in hf or not isinstance(hf["model_type"], str):
        raise UserError(f"{folder / 'config.json'} has no model_type; without it nobody knows what the weights are")
    return hf
