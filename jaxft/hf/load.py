"""Hub weights -> parameters, streamed: every device reads only its slice, and no host holds the model.

`match` settles by name and shape, before any byte is read, what each parameter is made of; whatever does not fit is
listed in one error. `load` then builds one parameter at a time from memory-mapped files.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from jaxft.hf import files, read
from jaxft.hf.files import Stored, read_config
from jaxft.hf.layout import Row, Table, parts, rows
from jaxft.registry import UserError

__all__ = ["LoadReport", "load", "match", "read_config"]

Index = tuple[int, ...]


@dataclass
class LoadReport:
    """What did not come from the checkpoint, and what of it was not used. Both are to be said aloud."""

    new: list[str] = field(default_factory=list)  # parameter paths, to be initialised by the caller
    dropped: list[str] = field(default_factory=list)  # hub names of heads that this run does not have


def load(
    folder: Path,
    table: Table,
    abstract: Mapping[str, Any],
    *,
    prefixes: Collection[str],
    ignore: Collection[str],
    other: Collection[str],
    legacy: Mapping[str, str],
    optional: Collection[str] = (),
    reset: Collection[str] = (),
    tied: Mapping[str, str] | None = None,
    lent: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    kept: Callable[[str, Any], Any] = lambda path, array: array,
) -> tuple[dict[str, Any], LoadReport]:
    """The parameters of `abstract` (nested dict of ShapeDtypeStruct with shardings) from the safetensors of `folder`.

    `table` has a row per parameter path. `prefixes` are what names of the trunk's tensors may begin with, or lack;
    `legacy` maps old name endings to new ones. Tensors that match a regex of `ignore` are buffers; those of `other`
    belong to other heads. `tied` maps names of copies to the tensors that they must equal, `lent` names of tensors that
    may be missing to those that they are then read from. `shapes` are those of parameters that are larger here than on
    disk: what is beyond is zero. `kept` makes of each parameter, as soon as it is there, what is returned of it.
    Parameters in `optional` may be absent, those in `reset` are not read at all: both are left out of the result and
    listed in `report.new`. Raises UserError that lists every tensor that is missing, extra, misshapen or there twice.
    """
    wanted, table_rows = flatten(abstract), rows(table)
    if strangers := set(wanted) ^ set(table_rows):
        raise ValueError(f"table and model differ in: {', '.join(sorted(strangers))}")
    shapes = {path: leaf.shape for path, leaf in wanted.items()} | dict(shapes or {})
    sources, report = match(
        folder,
        files.index(folder),
        table_rows,
        shapes,
        prefixes=prefixes,
        ignore=ignore,
        other=other,
        legacy=legacy,
        optional=optional,
        reset=reset,
        tied=tied or {},
        lent=lent or {},
    )
    places = parts(table_rows, shapes)
    params = {
        path: kept(path, read.parameter(wanted[path], shapes[path], table_rows[path], places[path], tensors))
        for path, tensors in sources.items()
    }
    return unflatten_dict(params, sep="/"), report


def match(
    folder: Path,
    stored: Mapping[str, Stored],
    table: Mapping[str, Row],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    prefixes: Collection[str],
    ignore: Collection[str],
    other: Collection[str],
    legacy: Mapping[str, str],
    optional: Collection[str],
    reset: Collection[str],
    tied: Mapping[str, str],
    lent: Mapping[str, str],
) -> tuple[dict[str, dict[Index, Stored]], LoadReport]:
    """Which stored tensors make up each parameter of `shapes`, by their index in its stacked axes."""
    names = {path: dict(table[path].tensors(shape)) for path, shape in shapes.items()}
    wholes = {path: part.whole for path, part in parts(table, shapes).items()}
    known = {name for tensors in names.values() for name in tensors.values()}
    second = {also: name for path, shape in shapes.items() for also, name in table[path].copies(shape)}
    found, twice = _canonical(stored, known | set(tied) | set(second), prefixes, legacy)
    for also in second.keys() & found.keys():
        found.setdefault(second[also], found.pop(also))
    problems = [f"there twice: {pair}" for pair in twice] + _untie(found, tied)
    found |= {name: found[of] for name, of in lent.items() if name in known and name not in found and of in found}

    report = LoadReport()
    for path in (*reset, *_absent(names, found, optional)):
        if path not in report.new:
            report.new.append(path)
            report.dropped += [name for name in names.pop(path).values() if name in found]
    for path, tensors in names.items():
        shape = wholes[path]
        advice = "; --config.model.reset_head=True starts a new head instead" if path in optional else ""
        problems += filter(None, (_mismatch(name, found.get(name), shape, advice) for name in tensors.values()))
    for name in sorted(set(found) - known):
        if any(re.fullmatch(pattern, name) for pattern in other):
            report.dropped.append(name)
        elif not any(re.fullmatch(pattern, name) for pattern in ignore):
            problems.append(f"extra: {name} {_text(found[name].shape)}")
    if problems:
        raise UserError(
            f"{folder}: the weights do not fit the model that config.json describes:\n  " + "\n  ".join(problems)
            + "\nUse a complete checkpoint whose config.json was saved with these weights."
        )  # fmt: skip
    return {path: {at: found[name] for at, name in tensors.items()} for path, tensors in names.items()}, report


def _mismatch(name: str, tensor: Stored | None, shape: tuple[int, ...], advice: str) -> str:
    """What is wrong with one tensor of the checkpoint, or ""."""
    if tensor is None:
        return f"missing: {name} {_text(shape)}"
    if tensor.shape != shape:
        return f"misshapen: {name} is {_text(tensor.shape)}, the model needs {_text(shape)}{advice}"
    if tensor.dtype not in read.DTYPES:
        return f"unsupported dtype: {name} is {tensor.dtype}; supported: {', '.join(read.DTYPES)}"
    return ""


def _untie(found: dict[str, Stored], tied: Mapping[str, str]) -> list[str]:
    """Drops from `found` the copies of tied tensors, and lists those that are no copies."""
    problems = []
    for second, original in tied.items():
        if second not in found:
            continue
        tensor = found.pop(second)
        if original not in found:  # the copy is all there is
            found[original] = tensor
        elif not _equal(tensor, found[original]):
            problems.append(
                f"not tied: {second} differs from {original}, though config.json ties them; "
                "--config.model.override.tied=False keeps both"
            )
    return problems


def _equal(a: Stored, b: Stored) -> bool:
    """Bit for bit, some megabytes at a time."""
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype not in read.DTYPES:
        return False
    step = max(1, read.PIECE // max(1, math.prod(a.shape[1:]) * 4))
    spans = ((begin, min(begin + step, a.shape[0])) for begin in range(0, a.shape[0], step))
    return all(read.rows_of(a, *span).tobytes() == read.rows_of(b, *span).tobytes() for span in spans)


def _canonical(
    stored: Mapping[str, Stored], known: Collection[str], prefixes: Collection[str], legacy: Mapping[str, str]
) -> tuple[dict[str, Stored], list[str]]:
    """The stored tensors under today's names with this trunk's prefix, and the pairs that fall on one name."""
    found: dict[str, Stored] = {}
    origin: dict[str, str] = {}
    twice = []
    for name, tensor in stored.items():
        newer = next((name.removesuffix(old) + now for old, now in legacy.items() if name.endswith(old)), name)
        bare = next((newer.removeprefix(prefix) for prefix in prefixes if newer.startswith(prefix)), newer)
        new = next((one for one in (newer, *(prefix + bare for prefix in prefixes)) if one in known), name)
        if new in found:
            twice.append(f"{origin[new]} and {name}")
        found[new], origin[new] = tensor, name
    return found, twice


def _absent(names: Mapping[str, Mapping[Index, str]], found: Collection[str], optional: Collection[str]) -> list[str]:
    """Optional parameters of which the checkpoint has nothing. A layer that is there in part is damaged, not absent."""
    present = {_module(path) for path, tensors in names.items() if any(name in found for name in tensors.values())}
    return [path for path in names if path in optional and _module(path) not in present]


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def flatten(tree: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{parent}{key}"
        flat.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return flat
