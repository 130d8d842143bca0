"""The solver agrees with brute force, and solves what others call hard."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES, Geometry
from trm_core.data.puzzles.build.sudoku.solver import solve

REAL = Path(__file__).parents[4] / "shared" / "data" / "sudoku" / "sudoku10k.txt"


def complete(grids: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Which of them [n, cells] have every number in each unit [units, numbers]."""
    return (np.sort(grids[:, units], axis=2) == np.arange(1, units.shape[1] + 1)).all(axis=(1, 2))


def is_solved(grids: np.ndarray, geometry: Geometry) -> bool:
    return bool(complete(grids, np.array(geometry.units)).all())


def all_grids_of_four() -> np.ndarray:
    """[288, 16], by trying every combination of rows."""
    rows = np.array(list(permutations(range(1, 5))))
    pairs = np.array([np.concatenate(two) for two in product(rows, repeat=2)])
    pairs = pairs[complete(pairs, np.array([[0, 1, 4, 5], [2, 3, 6, 7]]))]  # of rows that share boxes
    grids = np.array([np.concatenate(two) for two in product(pairs, repeat=2)])
    return grids[complete(grids, np.array(GEOMETRIES[4].units))]


GRIDS = all_grids_of_four()


def test_every_grid_of_four_digits_is_found() -> None:
    assert len(GRIDS) == 288
    assert solve(np.zeros((1, 16), dtype=np.uint8), GEOMETRIES[4], limit=1000).counts[0] == 288


@given(st.lists(st.lists(st.integers(0, 4), min_size=16, max_size=16), min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_clues_have_as_many_solutions_as_brute_force_finds(clues: list[list[int]], limit: int) -> None:
    puzzles = np.array(clues, dtype=np.uint8)
    check_against_brute_force(puzzles, limit)


@given(st.integers(0, 287), st.lists(st.booleans(), min_size=16, max_size=16))
@settings(max_examples=100, deadline=None)
def test_solvable_clues_too(grid: int, kept: list[bool]) -> None:
    check_against_brute_force((GRIDS[grid] * kept)[None], 2)


def check_against_brute_force(puzzles: np.ndarray, limit: int) -> None:
    solved = solve(puzzles, GEOMETRIES[4], limit)
    for puzzle, count, solution in zip(puzzles, solved.counts, solved.solutions, strict=True):
        fitting = GRIDS[((puzzle == 0) | (puzzle == GRIDS)).all(axis=1)]
        assert count == min(len(fitting), limit)
        assert (solution == 0).all() if not count else (fitting == solution).all(axis=1).any()


def test_a_known_hard_puzzle() -> None:
    text = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    puzzle = np.array([[int(c.replace(".", "0")) for c in text]])
    solved = solve(puzzle, GEOMETRIES[9])
    assert solved.counts.tolist() == [1]
    assert is_solved(solved.solutions, GEOMETRIES[9])
    assert ((puzzle == 0) | (puzzle == solved.solutions)).all()


def test_boxes_of_six_digits_are_two_rows_of_three() -> None:
    solved = solve(np.zeros((1, 36), dtype=np.uint8), GEOMETRIES[6])
    assert solved.counts.tolist() == [2]
    assert len(set(solved.solutions.reshape(6, 6)[2:4, 3:].ravel().tolist())) == 6


def test_no_puzzles_at_all() -> None:
    assert len(solve(np.zeros((0, 81), dtype=np.uint8), GEOMETRIES[9]).counts) == 0


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_real_puzzles_have_one_solution() -> None:
    lines = REAL.read_text().split()[:1000]
    puzzles = np.array([[int(c) for c in line.replace(".", "0")] for line in lines], dtype=np.uint8)
    solved = solve(puzzles, GEOMETRIES[9])
    assert (solved.counts == 1).all()
    assert is_solved(solved.solutions, GEOMETRIES[9])
