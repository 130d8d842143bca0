"""A sum tree with a fan-out of 16, which draws places in proportion to their values, all queries of a batch at once.

A draw searches a cumulative sum over the top level (at most 8,192 sums), then one over the 16 entries of the chosen
block, and so on down. Everything is float64 in host memory: the arrays are small, so the cost is that of the calls. A
sum is always recomputed from its block, never incremented, so no rounding error accumulates and the sums have the same
bits however the values came about. This is deferred until a sum is needed, then done for all touched blocks at once.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

Places = NDArray[np.int64]
Values = NDArray[np.float64]

FAN = 16  # cumulative sums over a block of 16 for each of 256 queries cost about as much as one over 8,192 sums
MAX_TOP = 8192
MAX_TOUCHED = 64  # changes that may be pending before the sums are brought up to date


class SumTree:
    """`size` values >= 0 with their sums. A change costs O(places); a query, or every MAX_TOUCHED changes, costs
    O(MAX_TOP) more, whatever the `size`.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.levels: list[Values] = [np.zeros(_padded(size))]
        while len(self.levels[-1]) > MAX_TOP:
            self.levels.append(np.zeros(_padded(len(self.levels[-1]) // FAN)))
        self._blocks = [level.reshape(-1, FAN) for level in self.levels]
        self._touched: list[Places] = []  # blocks whose sums are out of date
        self._before = np.zeros(len(self.levels[-1]) + 1)  # of the top level: the sum before each entry, then the total

    @property
    def values(self) -> Values:
        """[size], a view. Change it through `set`, `clear` and `load`, which keep the sums."""
        return self.levels[0][: self.size]

    @property
    def total(self) -> float:
        self._sum_up()
        return float(self._before[-1])

    def set(self, places: Places, values: Values) -> None:
        """Put values [n] at places [n]; if a place occurs twice, its last value counts."""
        self.levels[0][places] = values
        self._touch(places // FAN)

    def clear(self, start: int, end: int) -> None:
        """Zero the places start..end-1."""
        self.levels[0][start:end] = 0.0
        self._touch(np.arange(start // FAN, (end - 1) // FAN + 1))

    def load(self, values: Values) -> None:
        """Set the first values to these; the others become zero."""
        self.levels[0][: len(values)] = values
        self.levels[0][len(values) :] = 0.0
        self._touched = [np.arange(len(self._blocks[0]))]
        self._sum_up()

    def find(self, targets: Values) -> Places:
        """[n] the places where the cumulative sums first exceed targets [n] in [0, total).

        A place of value zero is never found: the first sum that exceeds the target also exceeds the sum before it. A
        target that rounding puts beyond the last sum is lowered to just below it, so this holds there too.
        """
        total = self.total
        assert total > 0.0, "nothing to draw from"
        targets = np.minimum(targets, math.nextafter(total, 0.0))
        places = self._before[1:].searchsorted(targets, side="right")
        before = self._before[places]
        for level in range(len(self.levels) - 2, -1, -1):
            targets = targets - before
            sums = _cumulated(self._blocks[level].take(places, 0))
            targets = np.minimum(targets, np.nextafter(sums[:, -1], 0.0))
            within = (sums > targets[:, None]).argmax(1)
            if level > 0:
                before = np.where(within > 0, sums[np.arange(len(sums)), within - 1], 0.0)
            places = places * FAN + within
        return places

    def before(self, place: int) -> float:
        """The sum of the values at 0..place-1."""
        self._sum_up()
        result = 0.0
        for level in self.levels[:-1]:
            result += float(level[place // FAN * FAN : place].sum())
            place //= FAN
        return result + float(self.levels[-1][:place].sum())

    def fault(self) -> str | None:
        """What is wrong with the values or sums; None if nothing is."""
        self._sum_up()
        if not bool(np.isfinite(self.levels[0]).all() and (self.levels[0] >= 0.0).all()):
            return "a value is negative or not finite"
        if self.levels[0][self.size :].any():
            return f"a value beyond the {self.size} places"
        for number, (below, above) in enumerate(pairwise(self.levels)):
            sums = _cumulated(below.reshape(-1, FAN))[:, -1]
            if not np.array_equal(above[: len(sums)], sums) or above[len(sums) :].any():
                return f"sums of level {number + 1} differ from their blocks"
        if not np.array_equal(self._before[1:], _cumulated(self.levels[-1])):
            return "the cumulative sums are not those of the top level"
        return None

    def _touch(self, blocks: Places) -> None:
        self._touched.append(blocks)
        if len(self._touched) > MAX_TOUCHED:
            self._sum_up()

    def _sum_up(self) -> None:
        """Bring the sums up to date."""
        if not self._touched:
            return
        places = np.concatenate(self._touched)
        self._touched.clear()
        for blocks, above in zip(self._blocks, self.levels[1:], strict=False):
            above[places] = _cumulated(blocks.take(places, 0))[:, -1]
            places //= FAN
        self._before[1:] = _cumulated(self.levels[-1])


def _padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // FAN) * FAN


def _cumulated(values: Values) -> Values:
    """Cumulative sums along the last axis, added one after the other: they never decrease, and do not change where a
    value is zero. torch takes a third of numpy's time.
    """
    return torch.from_numpy(values).cumsum(-1).numpy()
