"""Images: a processor, image caches, and a row for each image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import cache
from jaxft.config import Config
from jaxft.data import image_cache, pipeline
from jaxft.data.images import Augment, Processor
from jaxft.data.pipeline import EMPTY, Batch, Share
from jaxft.hf import processor as hf_processor
from jaxft.inputs import base
from jaxft.inputs.base import Inputs, Say, kept, listed, read
from jaxft.registry import UserError


@dataclass(frozen=True)
class ImageInputs(Inputs):
    """An image is a row of `length` tokens."""

    processor: Processor
    augment: Augment
    length: int

    @property
    def fields(self) -> dict[str, Any]:
        return {}

    def check(self, cfg: Any) -> None:
        """The images were made for this model."""

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self.caches["train"].row), self.length)

    def rows(self, split: str) -> int:
        return len(self.caches[split].row)

    def train_batches(self, config: Config, start: int, share: Share) -> Iterator[Batch]:
        held, batch, seed = self.caches["train"], config.train.batch, config.seed
        local = share.rows(batch)

        def make(step: int, rows_B: np.ndarray) -> Batch:
            changed = self.augment(held.pixels[rows_B[local]], local, batch=batch, seed=seed, step=step)
            return _batch(self.processor, changed, held.labels[rows_B[local]], rows_B[local], self.length)

        return pipeline.stream(self.rows("train"), make, batch=batch, seed=seed, start=start, shuffle=True)

    def eval_batches(self, split: str, batch: int, share: Share) -> Iterator[Batch]:
        held, local = self.caches[split], share.rows(batch)
        for rows_B in pipeline.passing(self.rows(split), batch):
            one = rows_B[local]
            yield _batch(self.processor, held.pixels[one], held.labels[one], one, self.length)


def _batch(processor: Processor, pixels: np.ndarray, label: np.ndarray, rows_B: np.ndarray, length: int) -> Batch:
    """The batch of these images; a row that is EMPTY stands for none, whatever its pixels.

    pixels: float32 [B, rows, columns, channels]; segment: int32 [B, L], 1 where there is an image; first, label,
    example [B, 1]; weight: float32 [B, 1].
    """
    real_B1 = (rows_B != EMPTY)[:, None]
    return {
        "pixels": processor.numbers(pixels),
        "segment": np.repeat(real_B1, length, axis=1).astype(np.int32),
        "first": np.zeros(real_B1.shape, np.int32),
        "label": np.where(real_B1, label[:, None], 0).astype(label.dtype),
        "weight": real_B1.astype(np.float32),
        "example": np.where(real_B1, rows_B[:, None], EMPTY).astype(np.int32),
    }


def placeholders(config: Config) -> dict[str, Any]:
    return {}


def prepare(config: Config, cfg: Any, folder: Path, hf_folder: Path | None, say: Say) -> ImageInputs:
    """Reads the images, fits the task to them, and decodes what is not cached yet. Raises UserError before any compile.

    The processor is that of `hf_folder`, the checkpoint to start from; without one transformers' ViTImageProcessor.
    """
    if (config.input.length, config.input.pack) != (cfg.positions, 1):
        raise UserError(
            f"input.length={config.input.length}, input.pack={config.input.pack}: an image of {cfg.image_size} x "
            f"{cfg.image_size} pixels is a row of {cfg.positions} tokens by itself; set input.length={cfg.positions}, "
            "input.pack=1"
        )
    processor = _processor(cfg, hf_folder)
    task, dataset = read(config, hf_folder, say)
    caches = {}
    for name, split in dataset.splits.items():
        caches[name] = image_cache.build(
            split,
            task.example,
            processor.pixels,
            shape=(processor.side, processor.side, processor.channels),
            key={
                "processor": repr(processor),
                "columns": repr((task.image, task.label)),
                "classes": repr(task.classes),
            },
            folder=str(cache.private_dir("images")),
            on_bad=config.input.on_bad,
        )
        say(f"{name}: {kept(caches[name].counts)}, {cfg.image_size} x {cfg.image_size} pixels")
        for line in listed(name, caches[name]):
            say(line)
    augment = Augment(task.crop, task.flip)
    return ImageInputs(task, hf_folder, dataset.splits, caches, processor, augment, config.input.length)


def blank(config: Config, cfg: Any, task: Any) -> Batch:
    """A batch of one black image."""
    processor = _processor(cfg, None)
    pixels = np.zeros((1, processor.side, processor.side, processor.channels), np.uint8)
    return _batch(processor, pixels, np.zeros(1, np.int32), np.zeros(1, np.int64), config.input.length)


def beside(config: Config, cfg: Any, folder: Path, hf_folder: Path | None) -> Callable[[Path], object]:
    """Writes the processor of a run into an export."""
    return lambda target: hf_processor.write(target, _processor(cfg, hf_folder))


def _processor(cfg: Any, hf_folder: Path | None) -> Processor:
    return Processor(**hf_processor.read(hf_folder, side=cfg.image_size, channels=cfg.channels))


class Reader(base.Reader):
    """The processor of a hub folder. `length` must be 0: an image has as many tokens as it has."""

    most = 256  # examples to hold at once: 150 KB each at 224 x 224 pixels

    def __init__(self, folder: Path, length: int, task: Any):
        if length:
            raise UserError(f"--length={length}: an image has as many tokens as the model gives it; leave it out")
        self._folder = folder
        self.fields: dict[str, Any] = {}

    def fit(self, cfg: Any) -> None:
        self._processor, self._length = _processor(cfg, self._folder), cfg.positions

    def example(self, example: Any) -> Any:
        """The example with its image decoded."""
        return example._replace(image=self._processor.pixels(example.image))

    def batches(self, examples: Sequence[Any], places: Sequence[str], rows: int) -> Iterator[Batch]:
        pixels = np.stack([example.image for example in examples])
        label = np.array([example.label or 0 for example in examples], np.int32)  # 0 also where nothing is labelled
        for rows_B in pipeline.passing(len(examples), rows):
            yield _batch(self._processor, pixels[rows_B], label[rows_B], rows_B, self._length)
