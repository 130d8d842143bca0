"""More training samples from those there are: pictures shifted by whole pixels or warped a little, grids turned and
recoloured.

A copy depends only on the sample's own content and the seed, so chunks and workers do not change it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trm_core.data.build.arc import COLOURS, GridPair
from trm_core.data.build.pictures import to_picture

# Limits of a warp, each drawn uniformly: about what separates two renderings of a digit by the same hand.
_ROTATION = np.deg2rad(12.0)
_SCALE = 0.08
_SHEAR = 0.1
_SHIFT = 0.075  # of the picture's side


class Augmentation(Protocol):
    """`most`: how many samples one becomes at most, itself included. `variants`: the sample itself and its copies."""

    @property
    def most(self) -> int: ...

    def variants(self, content: Any) -> list[Any]: ...


@dataclass(frozen=True)
class PictureCopies:
    """Which copies a training picture gets."""

    shift: int = 0  # all shifts by up to this many pixels
    warps: int = 0  # number of small random affine warps
    seed: int = 0

    @property
    def most(self) -> int:
        return (2 * self.shift + 1) ** 2 + self.warps

    def variants(self, content: Any) -> list[Any]:
        """float32 pictures [height, width, channels]."""
        picture = to_picture(content)
        return [picture, *shifted(picture, self.shift), *warped(picture, self.warps, self.seed)]


@dataclass(frozen=True)
class GridCopies:
    """`count` copies of a training pair of grids, each under a random symmetry of the square and a random permutation
    of the colours 1 to 9 (0 is the background); the same for input and output, so that the task stays the same.
    """

    count: int
    seed: int = 0

    @property
    def most(self) -> int:
        return 1 + self.count

    def variants(self, content: GridPair) -> list[Any]:
        random = np.random.default_rng([self.seed & 0xFFFFFFFF, zlib.crc32(content.input.tobytes())])
        found = [content]
        for _ in range(self.count):
            turns, mirrored = int(random.integers(4)), bool(random.integers(2))
            colours = np.concatenate([[0], 1 + random.permutation(COLOURS - 1)]).astype(np.int8)
            grids = [
                None if grid is None else moved(colours[grid], turns, mirrored)
                for grid in (content.input, content.output)
            ]
            assert grids[0] is not None
            found.append(GridPair(grids[0], grids[1]))
        return found


def moved(grid: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """A grid [h, w], mirrored first if asked for, then turned by quarter turns."""
    return np.ascontiguousarray(np.rot90(grid[:, ::-1] if mirrored else grid, turns))


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
