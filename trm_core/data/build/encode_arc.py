"""Pairs of grids to capsules: half of the cells lie over the input grid, half over the output grid.

A grid is padded with "outside" to the next multiple of its lattice of sub-cells, so small grids fill all cells too. A
child holds the share of each colour and of "outside" in its sub-cell, then the grid's height and width (over 30), which
a relative lattice would lose. Nothing is fitted. The parents of input cells form the quadtree of their lattice; the
parent of an output cell is the input cell at the same place, from which it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from trm_core.data.build.arc import COLOURS, MAX_SIDE, GridPair
from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.lattice import Lattice, factor
from trm_core.data.build.recorded import Arrays, Spec
from trm_core.errors import ConfigError

OUTSIDE = COLOURS
FEATURES = COLOURS + 3
_MAX_CELLS = 1 << 14  # limit for a recorded encoder: there are no more places on two grids


class ArcEncoder:
    """k cells (k even), the first k / 2 over the input; m sub-cells each; D >= 13."""

    name = "colours"
    default_sketch = "mean"
    masks = True
    parents = True
    label_rank = 1
    given_checksums = 0
    fit_rows = 4096

    def __init__(self, num_capsules: int, num_children: int, dim: int) -> None:
        if num_capsules % 2:
            raise ConfigError(
                f"ARC grids need an even data.build.num_capsules, got {num_capsules}",
                hint="half of the capsules lie over the input grid and half over the output grid",
            )
        if dim < FEATURES:
            raise ConfigError(f"ARC grids need data.build.dim of at least {FEATURES}, got {dim}")
        self.num_capsules = num_capsules
        self.num_children = num_children
        self.dim = dim
        self._cells = factor(num_capsules // 2, MAX_SIDE, MAX_SIDE)
        self._subcells = factor(num_children, MAX_SIDE, MAX_SIDE)
        half = num_capsules // 2
        tree = Lattice(MAX_SIDE, MAX_SIDE, self._cells, self._subcells).parents
        self._parents = np.concatenate([tree, np.arange(half, dtype=np.int64)])

    def fit(self, contents: Sequence[GridPair], seed: int) -> None:
        """Nothing to learn."""

    def encode(self, contents: Sequence[GridPair]) -> Encoded:
        half = self.num_capsules // 2
        children = np.zeros((len(contents), self.num_capsules, self.num_children, self.dim), dtype=np.float32)
        mask = np.zeros(children.shape[:3], dtype=bool)
        for row, pair in enumerate(contents):
            for begin, grid in ((0, pair.input), (half, pair.output)):
                if grid is not None:
                    children[row, begin : begin + half, :, :FEATURES] = self._cut(grid)
                    mask[row, begin : begin + half] = True
        return Encoded(children, mask, parents=np.tile(self._parents, (len(contents), 1)))

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        """Nothing to restore."""
        Arrays(state).close()

    def settings(self) -> dict[str, Any]:
        return {"cells": list(self._cells), "subcells": list(self._subcells), "features": FEATURES, "grids": 2}

    def spec(self) -> dict[str, Any]:
        return {"num_capsules": self.num_capsules, "num_children": self.num_children, "dim": self.dim}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        sizes = spec.whole("num_capsules", 2, _MAX_CELLS), spec.whole("num_children", 1, _MAX_CELLS), spec.whole("dim")
        spec.close()
        return cls(*sizes)

    def _cut(self, grid: np.ndarray) -> np.ndarray:
        """[k / 2, m, FEATURES] of one grid [h, w]."""
        height, width = grid.shape
        lattice = Lattice(height, width, self._cells, self._subcells)
        colours = lattice.cut(grid[None, :, :, None], fill=OUTSIDE)[0]
        shares = (colours[..., None] == np.arange(COLOURS + 1)).mean(axis=2, dtype=np.float32)
        size = np.broadcast_to(
            np.asarray([height / MAX_SIDE, width / MAX_SIDE], dtype=np.float32), (*shares.shape[:2], 2)
        )
        return np.concatenate([shares, size], axis=2)
