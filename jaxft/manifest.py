"""A folder of files that is either whole or not there: sealed with a list of sha256, published by one rename.

Orbax checksums no array data: one flipped byte restores silently wrong. The manifest is written last and synced, so its
presence says that every file came before it, and its content says whether they still are what they were.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxft import atomic

NAME = "manifest.json"
FORMAT = 1


def seal(folder: Path) -> None:
    """Syncs every file below `folder` to the disk and writes the manifest that names its size and sha256."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL; measured 1.8 GB/s a thread
        entries = list(pool.map(lambda name: _entry(folder / name, sync=True), names))
    for path in folder.rglob("*"):
        if path.is_dir():
            atomic.sync(path)
    atomic.write(folder / NAME, _text(dict(zip(names, entries, strict=True))))


def publish(draft: Path, target: Path) -> None:
    """Makes the sealed folder `draft` appear as `target` in one step. A `target` in the way gives way to it.

    A kill at any instant leaves `target` old, absent or new, never mixed; leftovers end in .tmp or .old.
    """
    aside = target.with_name(f"{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    draft.rename(target)
    atomic.sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Deletes a published folder; a kill in the middle leaves it whole or only as a leftover."""
    aside = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def is_sealed(folder: Path) -> bool:
    return (folder / NAME).is_file()


def damage(folder: Path) -> str:
    """Names the first file that is not as it was sealed, and how it differs; '' when all are."""
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        unchanged = text == _text(files)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{path} cannot be read ({error})"
    if not unchanged:
        return f"{path} was changed after it was written"
    for name, entry in files.items():
        trouble = _difference(folder / name, entry)
        if trouble:
            return trouble
    return ""


def _difference(path: Path, expected: Mapping[str, Any]) -> str:
    try:
        found = _entry(path, sync=False)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if found["bytes"] != expected["bytes"]:
        return f"{path} has {found['bytes']:,} bytes instead of {expected['bytes']:,}"
    if found["sha256"] != expected["sha256"]:
        return f"{path} has changed: sha256 {found['sha256'][:12]}... instead of {expected['sha256'][:12]}..."
    return ""


def _entry(path: Path, *, sync: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _text(files: Mapping[str, Any]) -> str:
    """The one spelling of a manifest. It carries its own sha256, since a flipped byte may hit it as well."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": FORMAT, "files": files, "sha256": own}, indent=1, sort_keys=True) + "\n"
