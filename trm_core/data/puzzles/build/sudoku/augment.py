"""Symmetric copies of Sudokus, all as hard as the original."""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.build.sudoku.geometry import Geometry


def symmetric_copies(
    puzzle: np.ndarray, solution: np.ndarray, geometry: Geometry, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` random copies of `puzzle` [cells] and of `solution` [cells], changed alike: two arrays [count, cells]."""
    names = np.zeros((count, geometry.n + 1), dtype=np.uint8)
    names[:, 1:] = _orders(rng, count, geometry.n) + 1
    rows = _line_orders(rng, count, geometry.n // geometry.box_rows, geometry.box_rows)
    columns = _line_orders(rng, count, geometry.n // geometry.box_columns, geometry.box_columns)
    source = rows[:, :, None] * geometry.n + columns[:, None, :]
    if geometry.transposable:
        turned = rng.random(count) < 0.5
        source[turned] = source[turned].transpose(0, 2, 1)
    source = source.reshape(count, geometry.cells)
    every = np.arange(count)[:, None]
    return names[every, puzzle[source]], names[every, solution[source]]


def _line_orders(rng: np.random.Generator, count: int, bands: int, size: int) -> np.ndarray:
    """[count, bands * size]: orders of lines that keep bands together."""
    outer = _orders(rng, count, bands)
    inner = _orders(rng, count * bands, size).reshape(count, bands, size)
    return (outer[:, :, None] * size + inner).reshape(count, bands * size)


def _orders(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """[count, length]: random permutations."""
    return rng.random((count, length)).argsort(axis=1)
