"""Images as transformers' processor makes them; what is no image; what training changes at random."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxft.data.images import Augment, Processor
from jaxft.hf import processor as hf_processor
from jaxft.registry import BadRow, UserError

SIDE = 14


def processor(folder=None, side=SIDE, channels=3):
    return Processor(**hf_processor.read(folder, side=side, channels=channels))


def picture(size=(23, 17), mode="RGB", seed=0):
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands)).astype(np.uint8)
    return Image.fromarray(pixels, mode=None)


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_numbers_equal_those_of_the_hubs_processor(tmp_path, mode, resample):
    from transformers import AutoImageProcessor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    hf_processor.write(tmp_path, Processor(SIDE, 3, resample, 1 / 255, mean, std))
    ours = processor(tmp_path)
    assert ours == Processor(SIDE, 3, resample, 1 / 255, mean, std)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = picture(mode=mode)
    wanted = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = ours.numbers(ours.pixels(encoded(image))[None])[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_a_file_its_bytes_and_its_array_are_the_same_image(tmp_path):
    image = picture()
    image.save(tmp_path / "x.png")
    made = [processor().pixels(one) for one in (str(tmp_path / "x.png"), encoded(image), np.asarray(image))]
    assert made[0].shape == (SIDE, SIDE, 3) and all(np.array_equal(made[0], one) for one in made)
    grey = np.asarray(picture(mode="L"))
    np.testing.assert_array_equal(processor().pixels(grey), processor().pixels(grey[..., None]))
    assert processor(channels=1).pixels(grey).shape == (SIDE, SIDE, 1)


def test_a_photo_is_turned_as_its_exif_says():
    image = picture((SIDE, SIDE))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned = processor().pixels(encoded(image, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"no image at all", "not an image that can be read"),
        (encoded(picture())[:200], "not an image that can be read"),
        (encoded(picture(), "JPEG")[:300], "not an image that can be read"),
        ("/nowhere/x.png", "no such file: /nowhere/x.png"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (encoded(Image.fromarray(np.arange(4, dtype=np.uint16).reshape(2, 2) * 9000)), "mode I;16"),
        (np.zeros((4, 4), np.float32), "mode F"),
        (np.zeros((4, 4, 7), np.uint8), "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_a_bad_row(source, reason):
    with pytest.raises(BadRow, match=reason):
        processor().pixels(source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 30, "width": 30}}, r"size=\{'height': 30, 'width': 30\}, and the model reads 14 x 14"),
        ({"size": {"shortest_edge": 14}}, "size={'shortest_edge': 14}"),
        ({"size": 14, "do_center_crop": True}, "not supported: do_center_crop=True"),
        ({"size": 14, "do_wonders": 1}, "not supported: do_wonders=1"),
        ({"size": 14, "image_mean": [0.5, 0.5]}, "image_mean has 2 values for 3 channels"),
    ],
)
def test_a_processor_that_does_something_else_is_refused_by_name(tmp_path, fields, message):
    hf_processor.save.save_json(tmp_path, hf_processor.FILE, fields)
    with pytest.raises(UserError, match=message):
        processor(tmp_path)


def test_a_processor_without_resizing_takes_its_size_alone(tmp_path):
    hf_processor.save.save_json(tmp_path, hf_processor.FILE, {"do_resize": False, "do_normalize": False})
    assert processor(tmp_path).numbers(processor(tmp_path).pixels(encoded(picture((SIDE, SIDE))))).max() <= 1
    with pytest.raises(BadRow, match=r"\(23, 17\) pixels, and the model reads 14 x 14"):
        processor(tmp_path).pixels(encoded(picture()))


def test_random_changes_depend_on_seed_step_and_place_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3)).astype(np.uint8)
    change, whole = Augment(crop=0.5, flip=True), np.arange(8)

    def made(at=whole, seed=1, step=5):
        return change(pixels[at], at, batch=8, seed=seed, step=step)

    np.testing.assert_array_equal(made(), made())
    parts = [np.array([0, 1, 5]), np.array([2, 3, 4, 6, 7])]
    np.testing.assert_array_equal(np.concatenate([made(part) for part in parts]), made()[np.concatenate(parts)])
    assert not np.array_equal(made(step=6), made()) and not np.array_equal(made(seed=2), made())
    np.testing.assert_array_equal(Augment(crop=1.0, flip=False)(pixels, whole, batch=8, seed=1, step=5), pixels)
    flipped = Augment(crop=1.0, flip=True)(pixels, whole, batch=8, seed=1, step=5)
    same = (flipped == pixels).all((1, 2, 3))
    assert 0 < same.sum() < 8 and np.array_equal(flipped[~same], pixels[~same][:, :, ::-1])
