"""Mazes: generated ones are what they claim, symmetries keep them, and wrong answers are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.puzzles.build.maze.check import solved
from trm_core.data.puzzles.build.maze.generate import generate, one_maze
from trm_core.data.puzzles.build.maze.grid import ALPHABET, GOAL, START, WALL, WAY, distances, forms, symmetric
from trm_core.errors import ConfigError


def grid(text: str) -> np.ndarray:
    return np.array([ALPHABET.codes(4)[c] for c in text], dtype=np.uint8)


def ways_by_hand(question: np.ndarray, side: int) -> tuple[int, int]:
    """Length and number of shortest ways from S to G, by matrix powers."""
    free = np.flatnonzero(question != WALL)
    row, column = free // side, free % side
    near = (abs(row[:, None] - row) + abs(column[:, None] - column) == 1).astype(np.int64)
    at = (question[free] == START).astype(np.int64)
    for length in range(1, len(free)):
        at = np.minimum(at @ near, 1000)
        if at[question[free] == GOAL][0]:
            return length, int(at[question[free] == GOAL][0])
    raise AssertionError("no way")


@given(st.integers(4, 13), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_generated_mazes_have_one_shortest_way_marked(side: int, seed: int) -> None:
    wanted = max(3, side * side // 9)
    question, answer = one_maze(side, wanted, np.random.default_rng(seed))
    length, number = ways_by_hand(question, side)
    assert number == 1
    assert length + 1 == (answer == WAY).sum() + 2 >= wanted
    for which in range(8):
        turned, turned_answer = (symmetric(g.reshape(side, side), which).ravel() for g in (question, answer))
        assert (solved(turned, turned_answer, side) == turned_answer).all()
        assert (solved(turned, np.zeros_like(turned), side) == turned_answer).all()
        assert forms(turned[None], side) == forms(question[None], side)


def test_the_eight_symmetries_differ() -> None:
    square = np.arange(9).reshape(3, 3)
    assert len({symmetric(square, which).tobytes() for which in range(8)}) == 8


def test_a_maze_depends_on_seed_and_number_alone() -> None:
    together = generate(0, 4, 0, 12, 16)[0]
    assert (generate(2, 4, 0, 12, 16)[0] == together[2:]).all()
    assert len(np.unique(together, axis=0)) == 4


def test_a_way_that_no_maze_has() -> None:
    with pytest.raises(ConfigError, match=r"data\.puzzles\.min_path.*5 x 5.*1000 cells"):
        one_maze(5, 1000, np.random.default_rng(0))


def test_ways_stay_in_their_row() -> None:
    # The end of a row is no neighbour of the start of the next.
    assert distances([1, 1, 1, 1], 2, 0)[0] == [0, 1, 1, 2]
    assert distances([1, 0, 1, 1, 0, 1, 0, 0, 0], 3, 2)[0] == [-1, -1, 0, -1, -1, 1, -1, -1, -1]


OPEN = "S   ### G   ####"  # 4 x 4: the way goes around to the right


@pytest.mark.parametrize(
    ("question", "answer", "problem"),
    [
        (OPEN, "Sooo###oGooo####", None),
        (OPEN, "", None),
        (OPEN.replace("S", " "), "", "has 0 S"),
        (OPEN.replace("# G", "GG "), "", "has 2 G"),
        (OPEN.replace("S ", "So"), "", "shows the path"),
        ("S # ### G   ####", "", "no path leads"),
        ("SG  ####    ####", "S   ####    ####", "changes the maze"),
        (OPEN, "Sooo####Gooo####", "changes the maze"),
        (OPEN, "Soo ###oGooo####", "do not lead"),
        ("S   #       G   ", "Sooo#  ooooo" + "Gooo", "steps, the shortest"),
        ("S   ### G   #   ", "Sooo###oGooo#  o", "not on the path"),
        ("S               "[:15] + "G", "", "several shortest paths"),
    ],
)
def test_answers_are_checked(question: str, answer: str, problem: str | None) -> None:
    result = solved(grid(question), grid(answer) if answer else np.zeros(16, dtype=np.uint8), 4)
    if problem is None:
        assert (result == grid("Sooo###oGooo####")).all()
    else:
        assert isinstance(result, str)
        assert problem in result
