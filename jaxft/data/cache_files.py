"""A folder of files with a sha256 manifest."""

import hashlib
import json
from pathlib import Path

import numpy as np

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Writes the manifest: size and sha256 of every file."""
    manifest = {file.name: _identity(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def fault(folder: Path) -> str:
    """What is wrong with a sealed folder, "" when nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, identity in manifest.items():
            if _identity(folder / name) != identity:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""


def mapped(file: Path, dtype: str) -> np.ndarray:
    """The file as a read-only memory-mapped vector (an empty file cannot be mapped: an empty vector)."""
    if not file.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype, "r")


def _identity(file: Path) -> list[int | str]:
    with open(file, "rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
