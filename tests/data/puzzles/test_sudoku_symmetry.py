"""Symmetric copies are valid, and their form tells them from others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.puzzles.build.sudoku.augment import symmetric_copies
from trm_core.data.puzzles.build.sudoku.forms import forms
from trm_core.data.puzzles.build.sudoku.generate import full_grid, generate
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.build.sudoku.solver import solve

SIZES = st.sampled_from([4, 6, 9])
SEEDS = st.integers(0, 2**32)


@given(SIZES, SEEDS, st.floats(0.2, 1.0))
@settings(max_examples=60, deadline=None)
def test_copies_are_valid_and_share_the_form(size: int, seed: int, share: float) -> None:
    geometry, rng = GEOMETRIES[size], np.random.default_rng(seed)
    solution = full_grid(geometry, rng)
    puzzle = solution * (rng.random(len(solution)) < share)
    puzzles, solutions = symmetric_copies(puzzle, solution, geometry, 6, rng)
    assert (np.sort(solutions[:, geometry.units], axis=2) == np.arange(1, size + 1)).all()
    assert ((puzzles == 0) | (puzzles == solutions)).all()
    assert ((puzzles > 0).sum(axis=1) == (puzzle > 0).sum()).all()
    expected = forms(puzzle[None], geometry)[0]
    assert (forms(puzzles, geometry) == expected).all()


@given(SIZES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_another_clue_is_another_form(size: int, seed: int) -> None:
    geometry, rng = GEOMETRIES[size], np.random.default_rng(seed)
    solution = full_grid(geometry, rng)
    order = rng.permutation(geometry.cells)
    fewer, more = solution.copy(), solution.copy()
    fewer[order[: geometry.cells // 2]] = 0
    more[order[: geometry.cells // 2 - 1]] = 0
    assert len(np.unique(forms(np.stack([fewer, more]), geometry))) == 2


def test_copies_keep_a_single_solution() -> None:
    puzzles, solutions = generate(0, 1, 5, GEOMETRIES[9], None)
    copies, answers = symmetric_copies(puzzles[0], solutions[0], GEOMETRIES[9], 30, np.random.default_rng(0))
    solved = solve(copies, GEOMETRIES[9])
    assert (solved.counts == 1).all()
    assert (solved.solutions == answers).all()
    assert len(np.unique(copies, axis=0)) == 30


def test_no_transposition_where_boxes_are_not_square() -> None:
    geometry = GEOMETRIES[6]
    solution = full_grid(geometry, np.random.default_rng(0))
    turned = solution.reshape(6, 6).T.ravel()
    copies, _ = symmetric_copies(solution, solution, geometry, 200, np.random.default_rng(1))
    assert (np.sort(copies[:, geometry.units], axis=2) == np.arange(1, 7)).all()
    assert not (np.sort(turned[geometry.units]) == np.arange(1, 7)).all()


def test_forms_of_four_digits_are_as_many_as_known() -> None:
    # There are two essentially different grids of four digits, and 36 puzzles that can spare no clue.
    puzzles, solutions = generate(0, 700, 0, GEOMETRIES[4], None)
    assert len(np.unique(forms(solutions, GEOMETRIES[4]))) == 2
    assert len(np.unique(forms(puzzles, GEOMETRIES[4]))) <= 36


@pytest.mark.parametrize("size", [4, 6, 9])
def test_unlike_puzzles_have_unlike_forms(size: int) -> None:
    puzzles, _ = generate(0, 40, 1, GEOMETRIES[size], {4: 9, 6: None, 9: None}[size])
    distinct = len(np.unique(forms(puzzles, GEOMETRIES[size])))
    assert distinct >= (30 if size == 4 else 40)
