"""Which cells of a Sudoku grid belong together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A grid of n x n cells in boxes of `box_rows` x `box_columns`; n is their product. Cells count row by row."""

    box_rows: int
    box_columns: int

    @property
    def n(self) -> int:
        return self.box_rows * self.box_columns

    @property
    def cells(self) -> int:
        return self.n * self.n

    @property
    def transposable(self) -> bool:
        """Whether swapping rows and columns gives a grid of the same kind."""
        return self.box_rows == self.box_columns

    @cached_property
    def rows(self) -> np.ndarray:
        """[cells]: the row of each cell."""
        return np.arange(self.cells) // self.n

    @cached_property
    def columns(self) -> np.ndarray:
        """[cells]: the column of each cell."""
        return np.arange(self.cells) % self.n

    @cached_property
    def boxes(self) -> np.ndarray:
        """[cells]: the box of each cell."""
        return self.rows // self.box_rows * self.box_rows + self.columns // self.box_columns

    @cached_property
    def units(self) -> np.ndarray:
        """[3n, n]: the cells of each row, then of each column, then of each box."""
        lines = [np.flatnonzero(line == i) for line in (self.rows, self.columns, self.boxes) for i in range(self.n)]
        return np.stack(lines)

    @cached_property
    def units_of(self) -> np.ndarray:
        """[cells, 3]: the three units of each cell."""
        return np.stack([self.rows, self.n + self.columns, 2 * self.n + self.boxes], axis=1)

    @cached_property
    def peers(self) -> tuple[tuple[int, ...], ...]:
        """For each cell the others that must differ from it."""
        sets = (set(self.units[self.units_of[cell]].ravel().tolist()) - {cell} for cell in range(self.cells))
        return tuple(tuple(sorted(found)) for found in sets)


GEOMETRIES = {4: Geometry(2, 2), 6: Geometry(2, 3), 9: Geometry(3, 3)}
