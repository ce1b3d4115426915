"""What the tables of all families are written with: rows of the hub table, and config.json read by one of fields."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from jaxft.layers.rope import attention_factor
from jaxft.models import HARMLESS
from jaxft.registry import UserError, nearest

Rows = dict[str, tuple[str, str]]


def dense(path: str, name: str, layout: str, *, bias: bool = True) -> Rows:
    """Kernel and bias of one linear layer; `layout` is the kernel's, and its last letter the bias's."""
    rows = {f"{path}/kernel": (f"{name}.weight", layout)}
    *_, out = layout.split()
    part = f"+{out}" if f"+{out}" in layout else out
    return rows | {f"{path}/bias": (f"{name}.bias", part)} if bias else rows


def norm(path: str, name: str, *, bias: bool = True, letter: str = "D") -> Rows:
    """Scale and bias of one norm."""
    rows = {f"{path}/scale": (f"{name}.weight", letter)}
    return rows | {f"{path}/bias": (f"{name}.bias", letter)} if bias else rows


def bare(rows: Rows, prefix: str) -> Rows:
    """The rows of a trunk as a checkpoint without a head calls them."""
    return {path: (name.removeprefix(prefix), layout) for path, (name, layout) in rows.items()}


def read_fields(
    hf: Mapping[str, Any], fields: Mapping[str, str], fixed: Mapping[str, Any], *, harmless: Iterable[str] = ()
) -> dict[str, Any]:
    """The fields of a hub config.json under our names.

    `fields` maps hub names to ours; `fixed` holds those that change numbers and of which one value is implemented;
    `harmless` those of the family that change none, beside models.HARMLESS. Raises UserError for every other one.
    """
    known = {*fields, *fixed, *harmless, *HARMLESS}
    if "auto_map" in hf and "auto_map" not in known:
        raise UserError(
            "config.json: auto_map asks for Python code from the model folder, which jaxft never runs; use a model "
            f"whose architecture is part of transformers, or take auto_map out if this is a plain {hf['model_type']}"
        )
    unknown = {name: value for name, value in hf.items() if name not in known}
    wrong = {name: hf[name] for name, only in fixed.items() if name in hf and hf[name] != only}
    if unknown or wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in {**unknown, **wrong}.items())
        raise UserError(f"config.json of a {hf['model_type']} model has fields that are not supported: {listed}")
    given = {ours: hf[name] for name, ours in fields.items() if name in hf}
    if given.get("pad_id", 0) is None:  # null: as where the file leaves it out
        del given["pad_id"]
    return given | {ours: 0 for ours in ("kv_heads", "head_dim") if ours in given and given[ours] is None}


def write_fields(cfg: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a Config under the hub's names, the other way round."""
    return {name: getattr(cfg, ours) for name, ours in fields.items()}


ORIGINAL = "original_max_position_embeddings"
ROPE_FIELDS = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", ORIGINAL)


def read_rope(hf: Mapping[str, Any], *, theta: float = 10000.0) -> dict[str, Any]:
    """`rope_parameters` in the way of transformers 5, from that or from the older fields; `theta` is the default.

    The older ones are rope_theta beside rope_scaling, whose type may be called `type`. Where a file has both, as those
    that jaxft writes, rope_scaling is what transformers 5 prefers; and a length of the original context that stands
    beside them rather than in them.
    """
    rope = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
    older = rope.pop("type", "default")
    rope.setdefault("rope_type", older)
    rope.setdefault("rope_theta", hf.get("rope_theta") or theta)
    if hf.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", hf["partial_rotary_factor"])
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        original = rope.get(ORIGINAL, hf.get("max_position_embeddings"))
        rope[ORIGINAL] = hf.get(ORIGINAL, original)
    if rope["rope_type"] == "yarn" and rope.get("factor") is None and "max_position_embeddings" in hf:
        rope["factor"] = hf["max_position_embeddings"] / rope[ORIGINAL]
    whole = ("partial_rotary_factor", 1)  # says what its absence says
    return {name: value for name, value in rope.items() if value is not None and (name, value) != whole}


def write_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Both dialects: transformers 5 reads rope_parameters, transformers 4 reads rope_theta and rope_scaling."""
    if rope["rope_type"] == "longrope" and "factor" in rope:
        # Said aloud: transformers 4 would not use this factor but another one of its own.
        rope = {"attention_factor": attention_factor(rope, rope[ORIGINAL]), **rope}
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    fields = {
        "rope_parameters": dict(rope),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling if rope["rope_type"] != "default" else None,
    }
    if rope["rope_type"] == "longrope":  # where transformers 4 looks for it
        fields[ORIGINAL] = rope[ORIGINAL]
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return fields


def check_sizes(cfg: Any, *sizes: str, acts: Mapping[str, Any]) -> None:
    """Raises UserError for a field of a wrong type, a size below 1, a rate that is none, heads that do not divide what
    they must, and an unknown activation."""
    _check_types(cfg)
    rates = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg) if "dropout" in field.name}
    for name, value in rates.items():
        if value is not None and not 0 <= value < 1:
            raise UserError(f"model: {name}={value} must be at least 0 and below 1")
    if getattr(cfg, "eps", 1) <= 0:
        raise UserError(f"model: eps={cfg.eps} must be above 0")
    for name in ("head_dim", "kv_heads"):
        if getattr(cfg, name, 0) < 0:
            raise UserError(f"model: {name}={getattr(cfg, name)} must be 0 or more")
    for name in sizes:
        if not getattr(cfg, name) or getattr(cfg, name) < 1:  # config.json may say null
            raise UserError(f"model: {name}={getattr(cfg, name)} must be 1 or more")
    if not getattr(cfg, "head_dim", 0) and cfg.d_model % cfg.heads:
        raise UserError(f"model: d_model={cfg.d_model} is not divisible by heads={cfg.heads}")
    kv_heads = getattr(cfg, "kv_heads", 0)
    if kv_heads and cfg.heads % kv_heads:
        raise UserError(f"model: kv_heads={kv_heads} must divide heads={cfg.heads}")
    check_known("act", cfg.act, acts)


def _check_types(cfg: Any) -> None:
    """Raises UserError for a value that is not of its field's type; config.json may say null, or text for a number."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        union = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        kinds: tuple[Any, ...] = tuple(get_origin(kind) or kind for kind in union)
        fits = (*kinds, *([int] if float in kinds else []), *([list] if tuple in kinds else []))
        if not isinstance(value, fits) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise UserError(f"model: {field.name}={value!r} must be {names}")


def check_known(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"model: {field}={value!r} is not known; known: {', '.join(known)}{nearest(value, known)}")
