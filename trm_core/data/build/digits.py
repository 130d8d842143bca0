"""The 1,797 handwritten digits that ship with scikit-learn: 8 x 8 pixels, values 0..16, no download."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from trm_core.data.build.records import Record, digest_array

SIZE = 8
MAX_VALUE = 16.0


class DigitsReader:
    """Streams the digits; content is a float32 picture [8, 8, 1] with values in [0, 1]."""

    shape = (SIZE, SIZE, 1)
    path = "digits"

    def __init__(self, labelled: bool = True) -> None:
        self.has_labels = labelled
        table = _table()
        self._images = table[:, :-1].reshape(-1, SIZE, SIZE).astype(np.float32)
        self._labels = table[:, -1].astype(int)

    def records(self, *, digests: bool) -> Iterator[Record]:
        for image, label in zip(self._images, self._labels, strict=True):
            yield Record(
                digit_picture(image),
                digest_array(image) if digests else 0,
                str(int(label)) if self.has_labels else None,
            )


def _table() -> np.ndarray:
    """float64 [1797, 65]: pixels and digit. Read from scikit-learn's file without importing scikit-learn, which takes
    longer than everything else that a run does before its first step.
    """
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # for versions that keep the file elsewhere

    pixels, digit = load_digits(return_X_y=True)
    return np.column_stack([pixels, digit])


def digit_picture(image: np.ndarray) -> np.ndarray:
    """float32 [8, 8, 1] in [0, 1] of float32 [8, 8] in [0, 16]."""
    return (image / MAX_VALUE)[:, :, None]


def digits_sha256() -> str:
    """Content hash of the embedded digits, for which the user has no file."""
    reader = DigitsReader()
    state = hashlib.sha256()
    for record in reader.records(digests=False):
        state.update(record.content.tobytes() + str(record.label).encode())
    return state.hexdigest()
