"""The 1,797 handwritten digits that ship with scikit-learn: 8 x 8 pixels, values 0..16, no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from trm_core.data.build.records import Record, digest_array

SIZE = 8
MAX_VALUE = 16.0


class DigitsReader:
    """Streams the digits; content is a float32 picture [8, 8, 1] with values in [0, 1]."""

    has_labels = True
    shape = (SIZE, SIZE, 1)
    path = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self._images = np.asarray(data.images, dtype=np.float32)
        self._labels = np.asarray(data.target)

    def records(self, *, digests: bool) -> Iterator[Record]:
        for image, label in zip(self._images, self._labels, strict=True):
            yield Record(digit_picture(image), digest_array(image) if digests else 0, str(int(label)))


def digit_picture(image: np.ndarray) -> np.ndarray:
    """float32 [8, 8, 1] in [0, 1] of float32 [8, 8] in [0, 16]."""
    return (image / MAX_VALUE)[:, :, None]


def digits_sha256() -> str:
    """Content hash of the embedded digits, which no file of the user's holds."""
    reader = DigitsReader()
    state = hashlib.sha256()
    for record in reader.records(digests=False):
        state.update(record.content.tobytes() + str(record.label).encode())
    return state.hexdigest()
