"""Generated Sudokus have one solution and come out the same however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest

from trm_core.data.puzzles.build.sudoku.generate import generate
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.build.sudoku.solver import solve


@pytest.mark.parametrize("size", [4, 6, 9])
def test_one_solution_and_no_clue_to_spare(size: int) -> None:
    geometry = GEOMETRIES[size]
    puzzles, solutions = generate(0, 5, 3, geometry, None)
    solved = solve(puzzles, geometry)
    assert (solved.counts == 1).all()
    assert (solved.solutions == solutions).all()
    for puzzle in puzzles:
        without = np.repeat(puzzle[None], int((puzzle > 0).sum()), axis=0)
        without[np.arange(len(without)), np.flatnonzero(puzzle)] = 0
        assert (solve(without, geometry).counts == 2).all()


def test_as_many_clues_as_asked_for() -> None:
    puzzles, _ = generate(0, 6, 0, GEOMETRIES[9], 40)
    assert ((puzzles > 0).sum(axis=1) == 40).all()


def test_a_puzzle_depends_on_seed_and_number_alone() -> None:
    together = generate(0, 6, 0, GEOMETRIES[6], None)
    apart = [generate(i, i + 1, 0, GEOMETRIES[6], None) for i in range(6)]
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert (whole == np.concatenate(parts)).all()
    assert (generate(0, 6, 1, GEOMETRIES[6], None)[0] != together[0]).any()
