"""From an image file to the numbers that a model reads, as the hub's image processors make them. Pillow and numpy."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.registry import BadRow, UserError

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
ENDINGS |= {".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
# No others are opened: some of Pillow's readers run programs.
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
MODES = {1: "L", 3: "RGB"}  # by channels


@dataclass(frozen=True)
class Processor:
    """What is done to an image, in this order: turned as its EXIF says, converted, resized, rescaled, normalised.

    side: pixels of the square that the model reads; an image is stretched to it, as by ViTImageProcessor.
    channels: 3 = RGB, 1 = grey. A grey image becomes RGB with three equal channels; transparency is laid over white.
    resample: Pillow's number of the filter (2 bilinear, 3 bicubic), None: no resizing, other sizes are refused.
    factor: of the values 0 to 255; mean, std: of each channel after that, () = not normalised.
    """

    side: int
    channels: int
    resample: int | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise UserError(f"images of {self.channels} channels are not supported: 3 (RGB) and 1 (grey) are")
        for name in ("mean", "std"):
            if (given := getattr(self, name)) and len(given) != self.channels:
                raise UserError(f"image_{name} has {len(given)} values for {self.channels} channels")

    def pixels(self, source: Any) -> np.ndarray:
        """uint8 [side, side, channels] of a file's name, its bytes, or an array [rows, columns(, channels)].

        Raises BadRow for what is no image, is broken, or would lose values (16 bits, floats).
        """
        from PIL import Image, ImageOps

        try:
            with _opened(source) as image:
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise BadRow(f"an image of mode {image.mode}, whose values 8 bits would clip; convert it first")
                image = _over_white(ImageOps.exif_transpose(image)).convert(MODES[self.channels])
                if image.size != (self.side, self.side):
                    if self.resample is None:
                        raise BadRow(f"an image of {image.size} pixels, and the model reads {self.side} x {self.side}")
                    image = image.resize((self.side, self.side), self.resample)
                return np.asarray(image).reshape(self.side, self.side, self.channels)
        except FileNotFoundError as error:
            raise BadRow(f"no such file: {error.filename}") from error
        # What Pillow raises for broken content depends on the format.
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            IndexError,
            TypeError,
            Image.DecompressionBombError,
        ) as error:
            raise BadRow(
                f"not an image that can be read ({str(error).splitlines()[0] if str(error) else error!r})"
            ) from error

    def numbers(self, pixels_BYWI: np.ndarray) -> np.ndarray:
        """float32 of uint8, rescaled and normalised: looked up, since there are 256 values a channel."""
        table = (np.arange(256, dtype=np.float64) * self.factor).astype(np.float32)[:, None].repeat(self.channels, 1)
        if self.mean:
            table = (table - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return table[pixels_BYWI, np.arange(self.channels)]


def _opened(source: Any) -> Any:
    from PIL import Image

    if isinstance(source, np.ndarray):
        return Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _over_white(image: Any) -> Any:
    """The image without transparency."""
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB")


@dataclass(frozen=True)
class Augment:
    """What training changes at random. crop: smallest share of an image's area that is kept (1: all of it), cut at a
    random place in the image's own proportions and resized; flip: half of the images are mirrored.
    """

    crop: float
    flip: bool

    def __call__(self, pixels_BYWI: np.ndarray, at: np.ndarray, *, batch: int, seed: int, step: int) -> np.ndarray:
        """The rows `at` of the global batch of `step`. They depend on (seed, step) and on their place in it alone."""
        draw_B4 = np.random.default_rng((seed, step)).random((batch, 4))[at]
        share_B = 1 - draw_B4[:, 0] * (1 - self.crop)
        out = pixels_BYWI.copy()
        if self.crop < 1:
            for i, pixels_YWI in enumerate(pixels_BYWI):
                out[i] = _cut(pixels_YWI, float(share_B[i]) ** 0.5, *draw_B4[i, 1:3].tolist())
        if self.flip:
            mirrored_B = draw_B4[:, 3] < 0.5
            out[mirrored_B] = out[mirrored_B, :, ::-1]
        return out


def _cut(pixels_YWI: np.ndarray, share: float, down: float, across: float) -> np.ndarray:
    """A window of `share` of both sides, `down` and `across` of the way, stretched to the size of the whole."""
    from PIL import Image

    rows, columns, channels = pixels_YWI.shape
    top, left = down * rows * (1 - share), across * columns * (1 - share)
    window = (left, top, left + share * columns, top + share * rows)
    image = Image.fromarray(pixels_YWI[..., 0] if channels == 1 else pixels_YWI)
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR, box=window)).reshape(pixels_YWI.shape)
