"""A picture as a lattice of cells, each cell a lattice of sub-cells: capsules and their children.

Pure geometry on numpy arrays; used by the image and grid encoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trm_core.errors import ConfigError


@dataclass(frozen=True)
class Lattice:
    """`cells` = (rows, columns) of capsules; `subcells` = (rows, columns) of children in each capsule.

    The picture of `height` x `width` pixels is padded at the bottom and the right until it divides.
    """

    height: int
    width: int
    cells: tuple[int, int]
    subcells: tuple[int, int]

    @property
    def num_capsules(self) -> int:
        return self.cells[0] * self.cells[1]

    @property
    def num_children(self) -> int:
        return self.subcells[0] * self.subcells[1]

    @cached_property
    def subcell_shape(self) -> tuple[int, int]:
        """Pixels (rows, columns) of one sub-cell."""
        rows = -(-self.height // (self.cells[0] * self.subcells[0]))
        columns = -(-self.width // (self.cells[1] * self.subcells[1]))
        return rows, columns

    @property
    def padded(self) -> tuple[int, int]:
        rows, columns = self.subcell_shape
        return rows * self.cells[0] * self.subcells[0], columns * self.cells[1] * self.subcells[1]

    @cached_property
    def parents(self) -> np.ndarray:
        """int64 [k]: a quadtree over the cells, -1 for its root, cell (0, 0).

        The parent of a cell is the top-left cell of its block of 2 x 2 cells; that of a block's top-left cell is the
        top-left cell of the 4 x 4 block around it, and so on. Blocks at the right and the bottom may be smaller.
        """
        rows, columns = self.cells
        found = np.full(rows * columns, -1, dtype=np.int64)
        for cell in range(1, rows * columns):
            row, column = divmod(cell, columns)
            side = 2
            while row % side == 0 and column % side == 0:
                side *= 2
            found[cell] = row // side * side * columns + column // side * side
        return found

    def cut(self, pictures: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """[n, height, width, channels] -> [n, k, m, rows * columns * channels], row-major everywhere."""
        n, _, _, channels = pictures.shape
        padded_rows, padded_columns = self.padded
        if (padded_rows, padded_columns) != (self.height, self.width):
            margin = ((0, 0), (0, padded_rows - self.height), (0, padded_columns - self.width), (0, 0))
            pictures = np.pad(pictures, margin, constant_values=fill)
        rows, columns = self.subcell_shape
        (cell_rows, cell_columns), (sub_rows, sub_columns) = self.cells, self.subcells
        parts = pictures.reshape(n, cell_rows, sub_rows, rows, cell_columns, sub_columns, columns, channels)
        parts = parts.transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return parts.reshape(n, self.num_capsules, self.num_children, rows * columns * channels)


def factor(count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns with rows * columns = count whose cells come nearest to squares on a height x width picture."""
    return min(_factorings(count), key=lambda parts: _skew(height / parts[0], width / parts[1]))


def make_lattice(height: int, width: int, num_capsules: int, num_children: int) -> Lattice:
    """`num_capsules` cells of `num_children` sub-cells, as nearly square as possible; of equals, that with the least
    padding.

    Raises `ConfigError` if there are too few pixels.
    """
    candidates = [
        Lattice(height, width, cells, subcells)
        for cells in _factorings(num_capsules)
        for subcells in _factorings(num_children)
        if cells[0] * subcells[0] <= height and cells[1] * subcells[1] <= width
    ]
    if not candidates:
        raise ConfigError(
            f"{num_capsules} capsules of {num_children} children do not fit on pictures of {height} x {width} pixels",
            hint="lower data.build.num_capsules or data.build.num_children, or raise data.build.image_size",
        )
    return min(candidates, key=_cost)


def _factorings(count: int) -> list[tuple[int, int]]:
    return [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]


def _skew(height: float, width: float) -> float:
    """0 for a square, growing with the ratio of its sides; rounded, so that equals compare as equal."""
    return round(abs(math.log(height / width)), 9)


def _cost(lattice: Lattice) -> tuple[float, int]:
    """How far cells and sub-cells are from squares, then how much padding."""
    cell_skew = _skew(lattice.height / lattice.cells[0], lattice.width / lattice.cells[1])
    rows, columns = (lattice.cells[axis] * lattice.subcells[axis] for axis in (0, 1))
    padded_rows, padded_columns = lattice.padded
    return cell_skew + _skew(lattice.height / rows, lattice.width / columns), padded_rows * padded_columns
