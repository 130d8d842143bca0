"""A number for each Sudoku that all its symmetric copies share, by which splits are made.

The symmetries are those that keep a puzzle's difficulty: renaming digits, permuting bands, stacks, rows within a band
and columns within a stack, and transposition where boxes are square.

For 4 digits the number comes from the true canonical form, the smallest of all symmetric copies. For more digits, where
that is costly, it comes from refining colours of cells: each cell starts as "clue" or "empty", and repeatedly takes in
the colours along its row, its column and its box, and those of the cells with the same digit. Nothing in that depends
on names or order, so copies always agree; two puzzles that are not copies of each other agree only if refinement cannot
tell them apart, and then they are kept on the same side of a split needlessly.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from trm_core.data.puzzles.build.sudoku.geometry import Geometry

_ROUNDS = 9  # a change reaches every cell within two rounds; the rest is for puzzles that are hard to tell apart
_BATCH = 500


def forms(grids: np.ndarray, geometry: Geometry) -> np.ndarray:
    """[M] uint64 for `grids` [M, cells] of digits, 0 where empty: equal for symmetric copies."""
    grids = grids.astype(np.uint8)
    if geometry.n <= 4:
        return _exact(grids, geometry)
    parts = [_refined(grids[i : i + _BATCH], geometry) for i in range(0, len(grids), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _refined(grids: np.ndarray, geometry: Geometry) -> np.ndarray:
    count, cells = grids.shape
    # A digit's cells are summed through a [M, digits + 1] table; empty cells are not linked to each other.
    slots = np.arange(count)[:, None] * (geometry.n + 1) + grids
    empty = grids == 0
    colours = _mix(np.where(empty, np.uint64(1), np.uint64(2)))
    row_salt, column_salt = (np.uint64(3), np.uint64(3) if geometry.transposable else np.uint64(5))
    for _ in range(_ROUNDS):
        sums = _mix(colours)[:, geometry.units].sum(axis=2, dtype=np.uint64)
        around = sums[:, geometry.units_of]
        by_digit = np.zeros(count * (geometry.n + 1), dtype=np.uint64)
        np.add.at(by_digit, slots.ravel(), _mix(colours + np.uint64(11)).ravel())
        bond = np.where(empty, np.uint64(0), by_digit[slots])
        lines = _mix(around[..., 0] * row_salt) + _mix(around[..., 1] * column_salt)
        colours = _mix(colours * np.uint64(13) + _mix(lines) + _mix(around[..., 2] + np.uint64(7)) + _mix(bond))
    return _mix(_mix(colours).sum(axis=1, dtype=np.uint64) + np.uint64(cells))


def _mix(values: np.ndarray) -> np.ndarray:
    """A fixed scrambling of 64-bit numbers (the finaliser of SplitMix64), wrapping around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _exact(grids: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The smallest copy of each grid, its digits renamed in order of appearance, read as a number."""
    maps = _position_maps(geometry)
    distinct, inverse = np.unique(grids, axis=0, return_inverse=True)
    found = np.empty(len(distinct), dtype=np.uint64)
    base = np.uint64(geometry.n + 1)
    for i, grid in enumerate(distinct):
        copies = grid[maps]
        names = np.zeros((len(copies), geometry.n + 1), dtype=np.uint8)
        used = np.zeros(len(copies), dtype=np.uint8)
        value = np.zeros(len(copies), dtype=np.uint64)
        every = np.arange(len(copies))
        for cell in range(geometry.cells):
            digit = copies[:, cell]
            new = (digit > 0) & (names[every, digit] == 0)
            used += new
            names[every[new], digit[new]] = used[new]
            value = value * base + names[every, digit]
        found[i] = value.min()
    return found[inverse.ravel()]


def _position_maps(geometry: Geometry) -> np.ndarray:
    """[symmetries, cells]: for each symmetry of positions, the cell that each cell's content comes from."""
    rows = _line_orders(geometry.n // geometry.box_rows, geometry.box_rows)
    columns = _line_orders(geometry.n // geometry.box_columns, geometry.box_columns)
    maps = (rows[:, None, :, None] * geometry.n + columns[None, :, None, :]).reshape(-1, geometry.cells)
    if geometry.transposable:
        turned = maps.reshape(-1, geometry.n, geometry.n).transpose(0, 2, 1).reshape(-1, geometry.cells)
        maps = np.concatenate([maps, turned])
    return maps


def _line_orders(bands: int, size: int) -> np.ndarray:
    """[orders, bands * size]: every order of lines that keeps bands together."""
    within = list(permutations(range(size)))
    return np.array(
        [
            [band * size + line for band, inner in zip(order, inners, strict=True) for line in inner]
            for order in permutations(range(bands))
            for inners in product(within, repeat=bands)
        ]
    )
