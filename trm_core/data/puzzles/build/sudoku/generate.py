"""Random Sudokus: a full grid, from which clues are removed as long as it has one solution.

Each puzzle draws from its own generator and is decided by exact tests only, so it comes out the same whichever others
are made with it. Many are dug at once, because the solver is fast on many.
"""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.build.seeds import GENERATE, generator
from trm_core.data.puzzles.build.sudoku.geometry import Geometry
from trm_core.data.puzzles.build.sudoku.solver import candidates, solve_candidates


def generate(start: int, stop: int, seed: int, geometry: Geometry, clues: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles `start` .. `stop` of a seed, each with one solution: (puzzles, solutions), both [stop - start, cells].

    Clues are removed down to `clues`, or until none can be spared.
    """
    generators = [generator(seed, GENERATE, index) for index in range(start, stop)]
    solutions = np.stack([full_grid(geometry, rng) for rng in generators])
    orders = np.stack([rng.permutation(geometry.cells) for rng in generators])
    return dig(solutions, orders, geometry, clues or 0), solutions


def full_grid(geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    """[cells]: a random solved grid."""
    # All random numbers are drawn at once: the search itself is then deterministic.
    ranks = rng.random((geometry.cells, geometry.n)).argsort(axis=1).tolist()
    ties = rng.permutation(geometry.cells).tolist()
    possible = [(1 << geometry.n) - 1] * geometry.cells
    grid = [0] * geometry.cells
    if not _fill(grid, possible, geometry.peers, ranks, ties):
        raise AssertionError("every empty grid can be filled")
    return np.array(grid, dtype=np.uint8)


def dig(solutions: np.ndarray, orders: np.ndarray, geometry: Geometry, clues: int) -> np.ndarray:
    """Remove clues from `solutions` [M, cells] in the order `orders` [M, cells] wherever one solution is left."""
    puzzles = solutions.copy()
    every = np.arange(len(puzzles))
    for cell in orders.T:
        digits = puzzles[every, cell]
        emptied = puzzles.copy()
        emptied[every, cell] = 0
        # A second solution would have another digit in this cell.
        possible = candidates(emptied, geometry)
        possible[every, cell] &= ~(np.uint16(1) << (digits - 1).astype(np.uint16))
        digging = np.flatnonzero((puzzles > 0).sum(axis=1) > clues)
        if not len(digging):
            break
        needed = solve_candidates(possible[digging], geometry, limit=1).counts > 0
        spared = digging[~needed]
        puzzles[spared, cell[spared]] = 0
    return puzzles


def _fill(
    grid: list[int], possible: list[int], peers: tuple[tuple[int, ...], ...], ranks: list[list[int]], ties: list[int]
) -> bool:
    """Fill `grid` by depth-first search, always at the cell with the fewest possible digits."""
    cell, fewest = -1, 99
    for other in ties:
        if not grid[other]:
            count = possible[other].bit_count()
            if count < fewest:
                cell, fewest = other, count
                if count < 2:
                    break
    if cell < 0:
        return True
    for digit in ranks[cell]:
        bit = 1 << digit
        if not possible[cell] & bit:
            continue
        grid[cell] = digit + 1
        changed = [peer for peer in peers[cell] if not grid[peer] and possible[peer] & bit]
        for peer in changed:
            possible[peer] &= ~bit
        if all(possible[peer] for peer in changed) and _fill(grid, possible, peers, ranks, ties):
            return True
        for peer in changed:
            possible[peer] |= bit
        grid[cell] = 0
    return False
