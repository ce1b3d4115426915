"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8 x 8 pixels, on every machine."""

import hashlib

import numpy as np

from jaxft.data.files import point
from jaxft.data.source import Dataset, Split, fingerprint

SHARES = {"test": 0.2, "validation": 0.1}  # of all images; the others are for training


def digits() -> Dataset:
    """Rows {"image": uint8 [8, 8], "label": 0 to 9}, split by a hash of the image.

    Source: E. Alpaydin, C. Kaynak 1998, the test part of the UCI optical recognition of handwritten digits.
    """
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # 17 shades
    places = np.array([point(image.tobytes()) for image in pixels])
    test, validation = SHARES["test"], SHARES["test"] + SHARES["validation"]
    chosen = {
        "train": places >= validation,
        "validation": (places >= test) & (places < validation),
        "test": places < test,
    }
    return Dataset(
        "digits",
        {name: _split(name, np.flatnonzero(mask), pixels, labels) for name, mask in chosen.items()},
        {"label": tuple(map(str, range(10)))},
    )


def _split(name: str, numbers: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> Split:
    rows = [{"image": pixels[i], "label": int(labels[i])} for i in numbers]
    content = hashlib.sha256(pixels[numbers].tobytes() + labels[numbers].tobytes()).hexdigest()
    return Split(rows, fingerprint(split=name, content=content), lambda i: f"digits:{numbers[i]}")
