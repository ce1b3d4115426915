"""preprocessor_config.json: what is done to an image before the model sees it, both ways."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.hf import files, save
from jaxft.registry import UserError

FILE = "preprocessor_config.json"

# Where a file leaves them out, and of a model from random numbers: those of transformers' ViTImageProcessor.
DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,  # bilinear
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# Steps of other processors: a file may name them only where it switches them off.
OFF = ("do_center_crop", "do_pad", "do_reduce_labels", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis")
# The order of bytes, who wrote the file, and options of steps that are off. RGB is what the model's channels say.
HARMLESS = (
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "data_format", "crop_size",
    "input_data_format", "device", "return_tensors", "do_convert_rgb", "default_to_square", "pad_size",
    "_valid_kwargs_names", "disable_grouping",
)  # fmt: skip


def read(folder: Path | None, *, side: int, channels: int) -> dict[str, Any]:
    """Fields of data.images.Processor for a model that reads squares of `side` pixels; `folder` None: the defaults.

    Raises UserError for a folder without the file, another size than the model's, and a step that is not supported.
    """
    if folder is None:
        given: Mapping[str, Any] = {"size": side, "image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    elif (folder / FILE).exists():
        given = files.read_json(folder, FILE)
    else:
        raise UserError(f"{folder} has no {FILE}: nobody knows how its images were prepared")
    where = f"{folder}/{FILE}"
    strange = [f"{name}={given[name]!r}" for name in given if name not in (*DEFAULTS, "size", *OFF, *HARMLESS)]
    strange += [f"{name}={given[name]!r}" for name in OFF if given.get(name)]
    if strange:
        raise UserError(f"{where} has fields that are not supported: {', '.join(strange)}")
    values = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS and value is not None}
    size = given.get("size", 224)
    sides = {size} if isinstance(size, int) else {size.get(name, 0) for name in ("height", "width")}
    if values["do_resize"] and sides != {side}:
        raise UserError(
            f"{where}: size={size!r}, and the model reads {side} x {side} pixels: its image_size cannot be "
            "another one, since positions are not interpolated"
        )
    return {
        "side": side,
        "channels": channels,
        "resample": values["resample"] if values["do_resize"] else None,
        "factor": float(values["rescale_factor"]) if values["do_rescale"] else 1.0,
        "mean": _each(values["image_mean"], channels) if values["do_normalize"] else (),
        "std": _each(values["image_std"], channels) if values["do_normalize"] else (),
    }


def _each(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),) * channels


def write(folder: Path, processor: Any) -> None:
    """The file from which transformers makes the same images of the same ones."""
    fields = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": processor.channels == 3,
        "do_resize": processor.resample is not None,
        "size": {"height": processor.side, "width": processor.side},
        "resample": DEFAULTS["resample"] if processor.resample is None else processor.resample,
        "do_rescale": processor.factor != 1.0,
        "rescale_factor": processor.factor,
        "do_normalize": bool(processor.mean),
        "image_mean": list(processor.mean) or DEFAULTS["image_mean"],
        "image_std": list(processor.std) or DEFAULTS["image_std"],
    }
    save.save_json(folder, FILE, fields)
