"""One picture as float32 [height, width, channels] in [0, 1], wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture still on disk: it is decoded where it is encoded, in a worker if there are any."""

    path: Path
    mode: str
    size: int | None

    def load(self) -> np.ndarray:
        """uint8 [height, width, channels]. Raises `DataError` if the file cannot be decoded."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.path) as opened:
                require_eight_bits(self.path, opened.mode)
                picture = opened.convert(self.mode) if self.mode == "RGBA" else _on_white(opened).convert(self.mode)
                if self.size is not None:
                    picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
                pixels = np.asarray(picture, dtype=np.uint8)
        except Image.DecompressionBombError as error:
            raise DataError(f"{self.path}: {error}", hint="remove the file, or scale it down first") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{self.path}: cannot be decoded as an image ({error})", hint="remove or replace it"
            ) from None
        return pixels.reshape(*pixels.shape[:2], -1)


def require_eight_bits(path: Path, mode: str) -> None:
    """Raises `DataError` for what Pillow would cut off at 255: 16 bits, 32, or floating point."""
    if mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: has more than 8 bits per pixel (mode {mode})",
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
    """float32 [height, width, channels] in [0, 1] of an `ImageFile`, a uint8 array, or an array already in [0, 1]."""
    pixels = content.load() if isinstance(content, ImageFile) else content
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255.0
    return pixels.astype(np.float32, copy=False)
