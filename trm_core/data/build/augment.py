"""More training pictures out of those there are: shifted by whole pixels, or warped a little.

A copy depends on the picture's own content and the seed alone, so chunks and workers do not change it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

# Limits of a warp, each drawn uniformly. About what separates two writings of one digit by one hand.
_ROTATION = np.deg2rad(12.0)
_SCALE = 0.08
_SHEAR = 0.1
_SHIFT = 0.075  # of the picture's side


@dataclass(frozen=True)
class Augmentation:
    """Which copies a training picture gets."""

    shift: int = 0  # every shift by up to this many pixels
    warps: int = 0  # so many random small affine warps
    seed: int = 0

    @property
    def most(self) -> int:
        """Pictures that one picture becomes at most, itself included."""
        return (2 * self.shift + 1) ** 2 + self.warps

    def copies(self, picture: np.ndarray) -> list[np.ndarray]:
        """The copies of a float32 picture [height, width, channels]."""
        return shifted(picture, self.shift) + warped(picture, self.warps, self.seed)


def warped(picture: np.ndarray, copies: int, seed: int) -> list[np.ndarray]:
    """Copies of [height, width, channels] rotated, scaled, sheared and moved a little; bilinear, zero outside."""
    if not copies:
        return []
    from scipy.ndimage import affine_transform

    random = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(np.ascontiguousarray(picture).tobytes())])
    size = np.array(picture.shape[:2], dtype=np.float64)
    center = (size - 1) / 2
    out = []
    for _ in range(copies):
        angle = random.uniform(-_ROTATION, _ROTATION)
        scale = 1 + random.uniform(-_SCALE, _SCALE, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.array([[scale[0], random.uniform(-_SHEAR, _SHEAR)], [0.0, scale[1]]])
        offset = center - matrix @ center + random.uniform(-_SHIFT, _SHIFT, 2) * size
        layers = [affine_transform(picture[..., c], matrix, offset, order=1) for c in range(picture.shape[2])]
        out.append(np.stack(layers, -1).astype(picture.dtype))
    return out


def shifted(picture: np.ndarray, reach: int) -> list[np.ndarray]:
    """Every copy of [height, width, channels] moved by (dy, dx) != 0 with |dy|, |dx| <= reach; the gap is zero."""
    height, width = picture.shape[:2]
    reach_y, reach_x = min(reach, height - 1), min(reach, width - 1)
    copies = []
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            if dy == 0 and dx == 0:
                continue
            copy = np.zeros_like(picture)
            copy[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = picture[
                max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
            ]
            copies.append(copy)
    return copies
