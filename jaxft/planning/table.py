"""The figures of a plan (figures.py) for a person."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxft.chips import GIB

MIB = 2**20
Told = Mapping[str, Any]


def lines(told: Told) -> Iterator[str]:
    """All of it, line by line."""
    axes = ", ".join(f"{axis}={size}" for axis, size in told["mesh"].items() if size > 1) or "of one device"
    pieces = f", {told['accumulate']} micro-batches" if told["accumulate"] > 1 else ""
    yield f"{told['machine']}, mesh {axes}; {told['batch']:,} rows, {told['tokens']:,} tokens a step{pieces}"
    yield f"compiled in {told['compile_seconds']:.1f} s, remat {told['remat']}"
    tables = [_memory(told)]
    if not told["too_many"]:
        tables.append(_traffic(told["collectives"]))
    if "seconds_of" in told:
        tables.append(_times(told))
    for table in tables:
        yield ""
        yield from table
    yield ""
    yield from _remarks(told)


def verdict(told: Told) -> str:
    """The same in one line."""
    text = f"{_in(GIB, told['total'])} GiB a device"
    if "seconds_of" not in told:
        return text
    least = f"{1000 * told['seconds_at_least']:.1f} ms a step at least"
    return f"{text}, {least}, bound by {told['bound']}, MFU up to {told['mfu_at_most']:.1%}"


def _memory(told: Told) -> list[str]:
    """What a device holds at the worst instant."""
    limit = told["chip"]["memory"] if told["chip"] else None
    parts = {
        "parameters": told["parameters"],
        "optimizer": told["optimizer"] - told["host"],
        "average, frozen, given": told["other_state"],
        "batch": told["batch_bytes"],
        "activations": told["activations"],
        "temporaries": told["temporaries"],
    }
    if told["too_many"]:  # then the compiler does not part them
        parts["all that it works with"] = told["total"] - sum(parts.values())
    name, unit = _unit(told["total"])
    body = [(part, _in(unit, size), _share(size, limit)) for part, size in parts.items() if size]
    body.append(("together", _in(unit, told["total"]), _share(told["total"], limit)))
    body += [("there are", _in(unit, limit), "")] if limit else []
    body += [("optimizer with the host", _in(unit, told["host"]), "")] if told["host"] else []
    return rows(("memory of a device", name, "of it"), body)


def _traffic(found: Sequence[Told]) -> list[str]:
    name, unit = _unit(sum(one["bytes"] for one in found))
    body = [
        (
            f"{one['kind']} of {one['devices']}",
            f"{one['count']:,}",
            _in(unit, one["bytes"]),
            _in(unit, one["bytes_sent"]),
        )
        for one in found
    ]
    return rows(("collective", "a step", f"{name} given", f"{name} sent"), body) if body else ["no collectives"]


def _times(told: Told) -> list[str]:
    """The four bounds, with what each is of."""
    chip = told["chip"]
    work = {
        "compute": (f"{told['flops']:.4g} FLOP", f"{chip['flops']:.4g}/s"),
        "memory": (f"{_in(GIB, told['memory_bytes'])} GiB", _rate(chip["bandwidth"])),
        "links": ("", f"{_rate(chip['link'])} each way"),
        "network": ("", _rate(chip["network"])),
    }
    body = [(name, *work[name], f"{1000 * seconds:.2f}") for name, seconds in told["seconds_of"].items() if seconds]
    return rows(("bound by", "of a device", "by the chip's", "ms"), body)


def _remarks(told: Told) -> Iterator[str]:
    if not told["flops_known"]:
        yield "FLOPs: a loop turns as often as the data say and counts once; for times those of the model, if more"
    for text in told["unsharded"]:
        yield f"not shared out, does not divide: {text}"
    if len(told["products"]) > 1:
        shares = ", ".join(f"{share:.1%} in {dtype}" for dtype, share in sorted(told["products"].items()))
        yield f"matrix products: {shares}"
    if told["largest_gather"]:
        name, unit = _unit(told["largest_gather"])
        yield f"the largest array that is gathered has {_in(unit, told['largest_gather'])} {name}"
    if told["rematerialized"]:
        yield f"{told['rematerialized']} arrays are copied whole to every device (XLA: involuntary full remat)"
    if "seconds_of" in told:
        yield (
            f"a step takes {1000 * told['seconds_at_least']:.1f} ms at least and is bound by {told['bound']}; "
            f"{1000 * told['seconds_without_overlap']:.1f} ms if nothing overlaps"
        )
        yield f"MFU up to {told['mfu_at_most']:.1%}, of {told['model_flops']:.4g} model FLOPs a step"
        yield "the chip's figures and where they are from: jaxft/chips.py"
    elif not told["chip"]:
        yield f"{told['device_kind']}: the figures of this chip are not known, so there are no times and no limit"


def rows(title: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (title, *body)) for i in range(len(title))]
    return [
        "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in (title, *body)
    ]


def _unit(largest: float) -> tuple[str, int]:
    return ("GiB", GIB) if largest >= GIB else ("MiB", MIB)


def _in(unit: int, size: float) -> str:
    return f"{size / unit:,.2f}"


def _share(size: float, limit: float | None) -> str:
    return f"{size / limit:.1%}" if limit else ""


def _rate(rate: float | None) -> str:
    return f"{rate / 1e9:,.0f} GB/s" if rate else "not known"
