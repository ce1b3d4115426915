"""Images in a folder of splits, each a folder of classes: pictures/train/cat/1.png."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxft import remote
from jaxft.data.files import point
from jaxft.data.images import ENDINGS
from jaxft.data.source import Dataset, Split, fingerprint
from jaxft.registry import BadRow, UserError, nearest

Found = tuple[Path, str, str]  # file, class, sha256 of its content


def images(*, folder: str, train: str, validation: str, test: str, holdout: float) -> Dataset:
    """Rows {"image": path, "label": name of the class folder} of the splits of `folder`.

    train, validation, test: sub-folders of `folder`, which hold a folder for each class; "" = no such split.
    holdout: share of the training images, 0 <= holdout < 1, held out as validation where `validation` is "". Chosen by
        a hash of the file's content: equal images stay together.
    Raises UserError for a folder that is missing or holds no such split, and for a class folder without an image. Other
    files than images, and images outside of class folders, are listed in `Split.bad`; hidden files are passed over.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"data.holdout={holdout} must be at least 0 and less than 1")
    root = remote.folder(folder, "data.folder")
    if not root.is_dir():
        raise UserError(f"data.folder={folder!r} is not a folder; name one with a sub-folder for each split")
    given = {"train": train, "validation": validation, "test": test}
    paths = {split: _sub_folder(root, split, name) for split, name in given.items() if name}
    splits = {}
    for split, path in paths.items():
        found, bad = _walk(path, f"data.{split}")
        if split == "train" and holdout and not validation:
            splits |= _held_out(found, bad, holdout)
        else:
            splits[split] = _split(found, bad)
    return Dataset("images", splits, {})


def read_split(folder: Path, field: str) -> Split:
    """The images of one folder of class folders. `field` names the config key or flag in errors."""
    return _split(*_walk(folder, field))


def read_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(path, row {"image": path} or BadRow) of the files of a folder, in the order of their names, hidden ones not."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            image = path.suffix.lower() in ENDINGS
            yield str(path), {"image": str(path)} if image else BadRow(_strange(path))


def _sub_folder(root: Path, split: str, name: str) -> Path:
    if not (root / name).is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise UserError(
            f"data.{split}={name!r}: {root} has no such sub-folder; it has: {', '.join(there) or 'none'}"
            f"{nearest(name, there)}. A split is a folder of class folders, such as {root}/{name}/cat/1.png"
        )
    return root / name


def _walk(folder: Path, field: str) -> tuple[list[Found], list[tuple[str, str]]]:
    """(images, what else lies there and why it is none), in the order of their names."""
    found, bad = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            bad.append((str(path), "lies in no class folder"))
            continue
        files = [file for file in sorted(_files(path)) if not file.name.startswith(".")]
        images = [file for file in files if file.suffix.lower() in ENDINGS]
        if not images:
            raise UserError(f"{field}: the class folder {path} has no image; remove it, or put images into it")
        found += [(file, path.name) for file in images]
        bad += [(str(file), _strange(file)) for file in files if file not in set(images)]
    if not found:
        raise UserError(f"{field}: {folder} has no class folders, such as {folder}/cat/1.png")
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_sha256, [file for file, _ in found])
        return [(file, label, digest) for (file, label), digest in zip(found, hashes, strict=True)], bad


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _strange(path: Path) -> str:
    return f"not an image by its name; images end in {', '.join(ENDINGS)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _held_out(found: Sequence[Found], bad: list[tuple[str, str]], share: float) -> dict[str, Split]:
    held = [point(digest.encode()) < share for _, _, digest in found]
    if all(held) or not any(held):
        raise UserError(
            f"data.holdout={share} of {len(found):,} images leaves {'train' if all(held) else 'validation'} without "
            "one; name a sub-folder as data.validation, or hold out another share"
        )
    parts = {name: [one for one, out in zip(found, held, strict=True) if out == side] for name, side in _SIDES.items()}
    return {name: _split(part, bad if name == "train" else []) for name, part in parts.items()}


_SIDES = {"train": False, "validation": True}


def _split(found: Sequence[Found], bad: list[tuple[str, str]]) -> Split:
    rows: list[dict[str, Any]] = [{"image": str(file), "label": label} for file, label, _ in found]
    identity = fingerprint(images=[(file.name, label, digest) for file, label, digest in found])
    return Split(rows, identity, lambda i: rows[i]["image"], bad)
