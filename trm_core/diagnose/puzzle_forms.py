"""Canonical forms of puzzles: one number shared by all rotated, mirrored and relabelled copies, to find copies across
splits.

Sudokus (recognised by their answers: every row and column has each digit once) have the symmetries of Sudokus; see
`trm_core.data.puzzles.build.sudoku.forms`. Copies of other grids are those made by renaming tokens and by the eight
symmetries of the square. For rows of tokens no symmetries are known. Imports no torch.
"""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.build.sudoku.forms import forms as sudoku_forms
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.survey import digests
from trm_core.diagnose.puzzle_examples import Examples

MOST_NAMES = 64
_FEW_CELLS = 25
_BY_CHANCE = 2  # forms that held-out and training puzzles may share by chance, such as small grids of one colour
_FEWEST = 5


def forms_of(examples: Examples, height: int, width: int, classes: int) -> np.ndarray | None:
    """[n] uint64, equal for copies; None if no symmetries are known, or if grids are so small that any two collections
    have copies in common (there are 288 Sudokus of 4 x 4 cells, with 2 forms).
    """
    if min(height, width) < 2 or height * width <= _FEW_CELLS or classes > MOST_NAMES or not len(examples):
        return None
    digits = digits_of(examples, height, width)
    if digits is not None:
        return sudoku_forms(digits, GEOMETRIES[height])
    return _grid_forms(np.stack([examples.inputs, examples.labels], 1).reshape(-1, 2, height, width), classes)


def digits_of(examples: Examples, height: int, width: int) -> np.ndarray | None:
    """[n, S] digits 1 to `height` of Sudokus, 0 for an empty cell; None for other puzzles."""
    if height != width or height not in GEOMETRIES:
        return None
    tokens = np.unique(examples.labels)
    if len(tokens) != height or tokens[0] < 0:
        return None
    geometry = GEOMETRIES[height]
    digits = np.searchsorted(tokens, examples.labels)
    if not (np.sort(digits[:, geometry.units], axis=2) == np.arange(height)).all():
        return None
    known = np.isin(examples.inputs, tokens)
    return np.where(known, np.searchsorted(tokens, examples.inputs) + 1, 0)


def _grid_forms(grids: np.ndarray, classes: int) -> np.ndarray:
    """[n, 2, height, width] -> [n]: the smallest digest over all copies, with tokens renamed by first appearance."""
    turned = [grids, grids[..., ::-1]]
    turned += [grid[..., ::-1, :] for grid in turned]
    if grids.shape[2] == grids.shape[3]:
        turned += [grid.swapaxes(2, 3) for grid in turned]
    copies = [digests([renamed(grid.reshape(len(grids), -1), classes)]) for grid in turned]
    return np.asarray(np.minimum.reduce(copies))


def renamed(rows: np.ndarray, classes: int) -> np.ndarray:
    """[n, L] tokens -> numbers in the order of first appearance in each row. Ignored labels count as a token."""
    tokens = np.where(rows < 0, classes, rows)
    length = rows.shape[1]
    first = np.full((len(rows), classes + 1), length)
    for token in range(classes + 1):
        here = tokens == token
        first[:, token] = np.where(here.any(1), here.argmax(1), length)
    order = np.empty_like(first)
    np.put_along_axis(order, np.argsort(first, axis=1, kind="stable"), np.arange(classes + 1)[None], axis=1)
    return np.take_along_axis(order, tokens, axis=1)


def shared_forms(train: np.ndarray, other: np.ndarray, groups: int, part: float) -> tuple[float, float]:
    """Shares of the held-out puzzles, and of the training puzzles, that share a form with (another) training puzzle.
    `train` [n], `other` [m]: forms. The first `groups` of `train` come from different groups, the fraction `part` of
    all, and the shares are scaled up to all. Held-out copies of one puzzle count once; one or two shared forms are
    taken as chance.
    """
    _, place, counts = np.unique(train[:groups], return_inverse=True, return_counts=True)
    common = np.isin(np.unique(other), train)
    share = scaled(common, part) if common.sum() > _BY_CHANCE else 0.0
    return share, scaled(counts[place] > 1, part)


def scaled(found: np.ndarray, part: float) -> float:
    """Share of `found` [n] bool, scaled up from `part` to all unless too few were found to rule out coincidence."""
    share = float(found.mean()) if len(found) else 0.0
    return share if found.sum() < _FEWEST else min(share / part, 1.0)
