"""An exact solver that works on many Sudokus at once.

A state holds the digits still possible in each cell as bits. All states of all puzzles are in one pool; each round
takes some of them, applies the simple rules once to all of them together (a digit known in a cell is possible nowhere
else in its units; a digit with one place left in a unit goes there), and splits those in which nothing changed at the
cell with the fewest digits. So a round is a few dozen array operations, whatever the number of puzzles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trm_core.data.puzzles.build.sudoku.geometry import Geometry

# States per round: enough to make the overhead of a round negligible, few enough to stay in the cache.
_ROUND = 512
_POPCOUNT = np.array([bits.bit_count() for bits in range(1 << 9)], dtype=np.int16)


@dataclass(frozen=True)
class Solved:
    """`counts` [M]: solutions of each puzzle, counted up to the limit; `solutions` [M, cells]: one each, or zeros."""

    counts: np.ndarray
    solutions: np.ndarray


def solve(puzzles: np.ndarray, geometry: Geometry, limit: int = 2) -> Solved:
    """Solve `puzzles` [M, cells] of digits, 0 where empty."""
    return solve_candidates(candidates(puzzles, geometry), geometry, limit)


def candidates(puzzles: np.ndarray, geometry: Geometry) -> np.ndarray:
    """[M, cells] uint16: bit d - 1 says that digit d is possible, from each cell's own clue alone."""
    full = np.uint16((1 << geometry.n) - 1)
    digits = puzzles.astype(np.uint16)
    return np.where(digits > 0, np.uint16(1) << (np.maximum(digits, 1) - np.uint16(1)), full)


def solve_candidates(possible: np.ndarray, geometry: Geometry, limit: int = 2) -> Solved:
    """Solve puzzles given as bits of possible digits [M, cells]."""
    total = len(possible)
    counts = np.zeros(total, dtype=np.int64)
    solutions = np.zeros((total, geometry.cells), dtype=np.uint8)
    # Cell by state, so that every operation runs along contiguous states.
    pool = [(np.ascontiguousarray(possible.T), np.arange(total))]
    while pool:
        states, owners = _take(pool)
        open_still = counts[owners] < limit
        if not open_still.all():
            states, owners = states[:, open_still], owners[open_still]
        if not len(owners):
            continue
        after, alive = _conclude(states, geometry)
        single = (after & (after - np.uint16(1))) == 0
        known = single.all(axis=0)
        # A state counts as solved only when a round finds no objection: it checks the singles it starts from.
        unchanged = (after == states).all(axis=0)
        solved = alive & known & unchanged
        if solved.any():
            found = owners[solved]
            np.add.at(counts, found, 1)
            solutions[found] = _digits(after[:, solved]).T
        moving = alive & ~unchanged
        if moving.any():
            pool.append((after[:, moving], owners[moving]))
        stuck = alive & unchanged & ~known
        if stuck.any():
            pool.append(_split(after[:, stuck], owners[stuck]))
    return Solved(np.minimum(counts, limit), solutions)


def _take(pool: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The newest states, so that the search goes deep before it goes wide and the pool stays small."""
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    room = _ROUND
    while pool and room:
        states, owners = pool.pop()
        if len(owners) > room:
            pool.append((states[:, :-room], owners[:-room]))
            states, owners = states[:, -room:], owners[-room:]
        taken.append((states, owners))
        room -= len(owners)
    if len(taken) == 1:
        return taken[0]
    return np.concatenate([states for states, _ in taken], axis=1), np.concatenate([owners for _, owners in taken])


def _conclude(states: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """One round of the rules on `states` [cells, M]: the new states, and which of them [M] may have a solution."""
    single = (states & (states - np.uint16(1))) == 0
    known = np.where(single, states, np.uint16(0))
    shape = (len(geometry.units), states.shape[1])
    once, twice, placed, clash = (np.zeros(shape, dtype=np.uint16) for _ in range(4))
    for cells in geometry.units.T:
        here, sure = states[cells], known[cells]
        twice |= once & here
        once |= here
        clash |= placed & sure
        placed |= sure
    full = np.uint16((1 << geometry.n) - 1)
    alive = (once == full).all(axis=0) & (clash == 0).all(axis=0)
    lonely = once & ~twice
    rows, columns, boxes = geometry.units_of.T
    after = np.where(single, states, states & ~(placed[rows] | placed[columns] | placed[boxes]))
    only = after & (lonely[rows] | lonely[columns] | lonely[boxes])
    after = np.where(only != 0, only, after)
    # Dead: two digits whose last places are the same cell, or a cell without a digit.
    alive &= ((only & (only - np.uint16(1))) == 0).all(axis=0) & (after != 0).all(axis=0)
    return after, alive


def _split(states: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of `states` [cells, M] once for every digit of its cell with the fewest digits (at least two)."""
    choices = _POPCOUNT[states]
    choices[choices < 2] = 99
    cell = choices.argmin(axis=0)
    count = choices[cell, np.arange(len(cell))]
    source = np.repeat(np.arange(len(cell)), count)
    rest = states[cell, np.arange(len(cell))]
    picks = np.empty(len(source), dtype=np.uint16)
    starts = np.cumsum(count) - count
    for step in range(int(count.max())):
        having = step < count
        lowest = rest & (~rest + np.uint16(1))
        picks[(starts + step)[having]] = lowest[having]
        rest = rest & ~lowest
    children = states[:, source]
    children[cell[source], np.arange(len(source))] = picks
    return children, owners[source]


def _digits(states: np.ndarray) -> np.ndarray:
    """The digits of states whose cells all hold one bit."""
    return _POPCOUNT[states - np.uint16(1)].astype(np.uint8) + np.uint8(1)
