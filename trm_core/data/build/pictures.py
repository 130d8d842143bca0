"""One picture as float32 [height, width, channels] in [0, 1], wherever it came from."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.errors import DataError

# What Pillow raises on purpose, and what its decoders run into in damaged files (TypeError in TIFF, RuntimeError in
# AVIF, struct.error and IndexError in PNG, ...): some of it Pillow takes for damage itself, but only while it opens a
# file.
_MEANT = (OSError, SyntaxError, ValueError)
_DAMAGE = (*_MEANT, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError, struct.error)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture still on disk: it is decoded where it is encoded, in a worker if there are any."""

    path: Path
    mode: str
    size: int | None

    def load(self) -> np.ndarray:
        """uint8 [height, width, channels], upright. Raises `DataError` if the file cannot be decoded."""
        from PIL import Image

        with open_picture(self.path) as opened:
            picture = _upright(opened)
            picture = picture.convert(self.mode) if self.mode == "RGBA" else _on_white(picture).convert(self.mode)
            if self.size is not None:
                picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, dtype=np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)


@contextmanager
def open_picture(path: Path) -> Iterator[Any]:
    """Pillow's picture, of which only the header has been read. Raises `DataError` for what cannot be decoded, also in
    the body of the `with`, and for more than 8 bits per channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            _require_eight_bits(path, opened.mode)
            yield opened
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}", hint="remove the file, or scale it down first") from None
    except _DAMAGE as error:
        why = str(error) if isinstance(error, _MEANT) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be decoded as an image ({why})", hint="remove or replace it") from None


def upright_size(picture: Any) -> tuple[int, int]:
    """(height, width) as `ImageFile.load` gives it; decodes only pictures that lie on their side."""
    if picture.width != picture.height and _orientation(picture) in _ON_ITS_SIDE:
        picture = _upright(picture)
    return picture.height, picture.width


def _upright(picture: Any) -> Any:
    """The picture as it is meant to be seen: a camera held sideways only notes that in EXIF's orientation.

    Not `ImageOps.exif_transpose`, which also rewrites the metadata and fails where anything else in it is broken.
    """
    from PIL import Image

    picture.load()  # Pillow turns a TIFF here, and then forgets its orientation
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


_ON_ITS_SIDE = (5, 6, 7, 8)


def _orientation(picture: Any) -> Any:
    """EXIF's orientation, 1 (upright) to 8, or whatever else is stored there."""
    from PIL.ExifTags import Base

    try:
        return picture.getexif().get(Base.Orientation, 1)
    except _DAMAGE:  # broken metadata: the pixels may be sound
        return 1


def _require_eight_bits(path: Path, mode: str) -> None:
    """Raise `DataError` for pixels that Pillow would clip at 255: 16 bits, 32 bits, or floating point."""
    if mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: has more than 8 bits per channel (mode {mode})",
            hint="save the pictures with 8 bits, or as an array in an npz file, whose largest value becomes 1",
        )


def _on_white(picture: Any) -> Any:
    """The picture as it looks on white paper, where parts of it are transparent."""
    from PIL import Image

    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    shown = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)


def to_picture(content: Any) -> np.ndarray:
    """float32 [height, width, channels] in [0, 1] from an `ImageFile`, a uint8 array, or an array already in [0, 1]."""
    pixels = content.load() if isinstance(content, ImageFile) else content
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255.0
    return pixels.astype(np.float32, copy=False)
