"""Pictures in a folder of class folders (or a flat folder), or in an npz file with images and labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.build.array_files import ArrayFile, open_arrays
from trm_core.data.build.arrays import LABEL_ARRAYS, class_name
from trm_core.data.build.folders import files_by_class
from trm_core.data.build.pictures import ImageFile, open_picture, upright_size
from trm_core.data.build.records import Log, Record, digest_array, label_among
from trm_core.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGE_ARRAYS = ("images", "image", "x", "X", "data")
_GRAY_MODES = frozenset({"1", "L", "LA"})


class FolderReader:
    """A folder whose sub-folders are the classes; without sub-folders, pictures without labels.

    Sizes and colours of all pictures are examined first (for most of them from the header alone). Contents are
    `ImageFile`s, decoded later.
    """

    def __init__(self, path: str, size: int | None, log: Log, labelled: bool = True) -> None:
        """labelled: false where the sub-folders are not classes."""
        self.path = path
        self._files = [(file, label if labelled else None) for file, label in picture_files(Path(path), log)]
        self.has_labels = any(label is not None for _, label in self._files)
        self.size = size
        height, width, self._mode = self._examine()
        self.shape = (height, width, 3 if self._mode == "RGB" else 1)

    def records(self, *, digests: bool) -> Iterator[Record]:
        for file, label in self._files:
            content = ImageFile(file, self._mode, self.size)
            yield Record(content, digest_array(content.load()) if digests else 0, label)

    def _examine(self) -> tuple[int, int, str]:
        """(height, width, mode) that fits all pictures."""
        sizes: dict[tuple[int, int], Path] = {}
        colour = False
        for file, _ in self._files:
            with open_picture(file) as picture:
                colour = colour or picture.mode not in _GRAY_MODES
                if self.size is None:
                    sizes.setdefault(upright_size(picture), file)
        mode = "RGB" if colour else "L"
        if self.size is not None:
            return self.size, self.size, mode
        if len(sizes) > 1:
            (first, one), (second, other) = list(sizes.items())[:2]
            raise DataError(
                f"{other}: is {second[0]} x {second[1]}, but {one} is {first[0]} x {first[1]}",
                hint="give data.build.image_size to bring all pictures to one size",
            )
        height, width = next(iter(sizes))
        return height, width, mode


class NpzImagesReader:
    """Arrays [N, H, W] or [N, H, W, C] of pictures and, if there, [N] of labels in one npz file.

    uint8 is divided by 255, anything else by its largest value if that is above 1. All rows are searched for it,
    held-out ones too: the range of the numbers is a matter of type, like whether a table's column holds numbers.
    """

    def __init__(self, path: str, label: str | None, log: Log) -> None:
        self.path = path
        arrays = open_arrays(Path(path))
        self._images, labels_name = find_images(path, arrays, label)
        self._labels = arrays[labels_name] if labels_name else None
        self.has_labels = self._labels is not None
        height, width = self._images.shape[1:3]
        self.shape = (height, width, self._images.shape[3] if len(self._images.shape) == 4 else 1)
        if self._labels is not None and self._labels.shape != self._images.shape[:1]:
            raise DataError(
                f"{path}: {self._labels.name} has shape {list(self._labels.shape)} for {self._images.shape[0]} images"
            )
        if self._images.dtype.kind not in "fiu":
            raise DataError(f"{path}: {self._images.name} has dtype {self._images.dtype}, expected numbers")
        self.whole = self._images.dtype.kind in "iu" and self._images.dtype != np.uint8
        self.scale = None if self._images.dtype == np.uint8 else self._largest()
        log(f"{path}: images {self._images.name!r} {list(self._images.shape)}, labels {labels_name or 'none'}")

    def records(self, *, digests: bool) -> Iterator[Record]:
        labels: Iterator[Any] = iter(()) if self._labels is None else self._labels.rows()
        for image in self._images.rows():
            pixels = image.reshape(self.shape)
            if self.scale is not None:
                pixels = scaled(pixels, self.scale)
            label = None if self._labels is None else class_name(next(labels))
            yield Record(pixels, digest_array(pixels) if digests else 0, label)

    def _largest(self) -> float:
        largest = 1.0
        for number, image in enumerate(self._images.rows()):
            low, high = float(image.min()), float(image.max())
            if not np.isfinite([low, high]).all():
                raise DataError(f"{self.path}: image {number} holds NaN or infinity")
            if low < 0:
                raise DataError(
                    f"{self.path}: image {number} has pixels below 0 ({low:.3g})",
                    hint="scale them to 0..1; if they are signals or embeddings, not pictures, give --kind arrays",
                )
            largest = max(largest, high)
        return largest


def scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    """float32 pixels in [0, 1] from numbers up to `scale`."""
    return (pixels / scale).astype(np.float32)


def picture_files(path: Path, log: Log) -> list[tuple[Path, str | None]]:
    """(file, its class) of all pictures; those outside class folders have none. Raises `DataError` for a folder without
    pictures.
    """
    return files_by_class(path, IMAGE_SUFFIXES, "pictures", log)


def find_images(path: str, arrays: dict[str, ArrayFile], label: str | None) -> tuple[ArrayFile, str | None]:
    """(the images, the name of the labels or None). Raises `DataError` if it is not clear which array is which."""
    there = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    images = next((arrays[name] for name in IMAGE_ARRAYS if name in arrays), None)
    if images is None or len(images.shape) not in (3, 4) or 0 in images.shape:
        raise DataError(f"{path}: has no array images (or x) of [N, H, W] or [N, H, W, C]; there are: {there}")
    name = label_among(arrays, label, LABEL_ARRAYS)
    if name is not None and name not in arrays:
        raise DataError(f"{path}: has no array {name!r}; there are: {there}")
    return images, name
