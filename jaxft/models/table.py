"""What the tables of all families are written with: rows of the hub table, and config.json read by one of fields."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.models import HARMLESS
from jaxft.registry import UserError, nearest


def dense(path: str, name: str, layout: str) -> dict[str, tuple[str, str]]:
    """Kernel and bias of one linear layer; `layout` is the kernel's."""
    return {f"{path}/kernel": (f"{name}.weight", layout), f"{path}/bias": (f"{name}.bias", layout.split()[0])}


def norm(path: str, name: str) -> dict[str, tuple[str, str]]:
    """Scale and bias of one layer norm."""
    return {f"{path}/scale": (f"{name}.weight", "D"), f"{path}/bias": (f"{name}.bias", "D")}


def read_fields(
    hf: Mapping[str, Any], fields: Mapping[str, str], fixed: Mapping[str, Any], *, harmless: Iterable[str] = ()
) -> dict[str, Any]:
    """The fields of a hub config.json under our names.

    `fields` maps hub names to ours; `fixed` holds those that change numbers and of which one value is implemented;
    `harmless` those of the family that change none, beside models.HARMLESS. Raises UserError for every other one.
    """
    known = {*fields, *fixed, *harmless, *HARMLESS}
    unknown = {name: value for name, value in hf.items() if name not in known}
    wrong = {name: hf[name] for name, only in fixed.items() if name in hf and hf[name] != only}
    if unknown or wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in {**unknown, **wrong}.items())
        raise UserError(f"config.json of a {hf['model_type']} model has fields that are not supported: {listed}")
    given = {ours: hf[name] for name, ours in fields.items() if name in hf}
    if given.get("pad_id", 0) is None:
        del given["pad_id"]
    return given


def check_sizes(cfg: Any, *sizes: str, acts: Mapping[str, Any]) -> None:
    """Raises UserError for a size below 1, a width that heads do not divide and an activation that `acts` lacks."""
    for name in sizes:
        if getattr(cfg, name) < 1:
            raise UserError(f"model: {name}={getattr(cfg, name)} must be 1 or more")
    if cfg.d_model % cfg.heads:
        raise UserError(f"model: d_model={cfg.d_model} is not divisible by heads={cfg.heads}")
    if cfg.act not in acts:
        raise UserError(f"model: act={cfg.act!r} is not known; known: {', '.join(acts)}{nearest(cfg.act, acts)}")
