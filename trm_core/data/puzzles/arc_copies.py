"""Augmented copies of ARC tasks: what is done to their grids, how the copies are named, and how to undo them.

A copy shows every grid of a task under one symmetry of the square, t0 to t7, and one permutation of the colours 1 to 9
(0 is the background and stays). It is named TASK|||t3|||0417582963: digit c of the last part is what colour c becomes.
The public TRM and HRM code uses the same names, so copies are undone the same way whoever made them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trm_core.data.build.arc import COLOURS
from trm_core.errors import DataError

SEPARATOR = "|||"
TRANSFORMS = 8
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)  # of t0..t7: the quarter turns undo each other, the rest are their own inverses
_SUFFIX = re.compile(r"t([0-7])\|\|\|([0-9]{10})")


@dataclass(frozen=True)
class Copy:
    """One way to copy a task. `colours` uint8 [10]: what each colour becomes."""

    transform: int
    colours: np.ndarray

    def name(self, task: str) -> str:
        return SEPARATOR.join([task, f"t{self.transform}", "".join(map(str, self.colours.tolist()))])

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """The grid [h, w] as the copy shows it."""
        return transformed(self.colours[grid], self.transform)

    def undo(self, grid: np.ndarray) -> np.ndarray:
        """The grid [h, w] that the copy shows as `grid`."""
        return np.argsort(self.colours).astype(np.uint8)[transformed(grid, _INVERSE[self.transform])]


def transformed(grid: np.ndarray, transform: int) -> np.ndarray:
    """A grid [h, w] under t0 (as it is), t1-t3 (that many quarter turns to the left), t4 (mirrored left to right), t5
    (top to bottom), t6 (along the main diagonal) or t7 (along the other one). A view.
    """
    match transform:
        case 0 | 1 | 2 | 3:
            return np.rot90(grid, transform)
        case 4:
            return grid[:, ::-1]
        case 5:
            return grid[::-1]
        case 6:
            return grid.T
        case 7:
            return grid[::-1, ::-1].T
    raise AssertionError(f"t{transform} is not one of t0 to t{TRANSFORMS - 1}")


def inverse_of(name: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The task that an identifier's name belongs to, and a function that turns grids [h, w] of that copy back into the
    task's.

    Raises `DataError` for a name that looks like a copy's but is not valid.
    """
    task, separator, suffix = name.partition(SEPARATOR)
    if not separator:
        return name, _same
    match = _SUFFIX.fullmatch(suffix)
    if match is None or len(set(match[2])) != COLOURS:
        raise DataError(
            f"puzzle identifier {name!r}: is not the name of a copy",
            hint=f"copies are named like {SEPARATOR.join(['TASK', 't3', '0417582963'])}",
        )
    return task, Copy(int(match[1]), np.array([int(digit) for digit in match[2]], dtype=np.uint8)).undo


def _same(grid: np.ndarray) -> np.ndarray:
    return grid
