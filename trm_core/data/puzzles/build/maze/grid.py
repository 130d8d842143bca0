"""A maze as tokens, its paths, and its eight symmetric copies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from trm_core.data.puzzles.build.items import Alphabet

WALL, FREE, START, GOAL, WAY = 1, 2, 3, 4, 5
CHARACTERS = "# SGo"  # tokens from 1 on
SYMBOLS = ["<pad>", *CHARACTERS]


def side_of(cells: int) -> int | None:
    """The side of a square of `cells` cells."""
    side = math.isqrt(cells)
    return side if side >= 2 and side * side == cells else None


ALPHABET = Alphabet(
    codes=lambda side: {character: token for token, character in enumerate(CHARACTERS, start=1)},
    side=side_of,
    expected="a square number of characters, row after row",
    characters="# (wall), space (free), S (start), G (goal) and, in solutions, o (the path)",
    lines=False,
)


def distances(grid: Sequence[int], side: int, start: int) -> tuple[list[int], list[int]]:
    """Steps from `start` to each cell (-1: unreachable) and the number of shortest paths there, counted up to 2.

    `grid` holds side * side cells, true where one can walk.
    """
    steps, ways = [-1] * len(grid), [0] * len(grid)
    steps[start], ways[start] = 0, 1
    front, last = [start], side - 1
    while front:
        reached: list[int] = []
        for cell in front:
            column, step, count = cell % side, steps[cell] + 1, ways[cell]
            for near, inside in (
                (cell - side, cell >= side),
                (cell + side, cell + side < len(grid)),
                (cell - 1, column > 0),
                (cell + 1, column < last),
            ):
                if not inside or not grid[near]:
                    continue
                if steps[near] < 0:
                    steps[near], ways[near] = step, count
                    reached.append(near)
                elif steps[near] == step:
                    ways[near] = 2
        front = reached
    return steps, ways


def way_back(steps: Sequence[int], side: int, goal: int) -> list[int]:
    """The cells strictly between the start of `steps` and `goal`, along a shortest path."""
    cell, found = goal, []
    while steps[cell] > 1:
        near = [cell - side, cell + side]
        near += [cell - 1] if cell % side else []
        near += [cell + 1] if cell % side < side - 1 else []
        cell = next(other for other in near if 0 <= other < len(steps) and steps[other] == steps[cell] - 1)
        found.append(cell)
    return found


def symmetric(grids: np.ndarray, which: int) -> np.ndarray:
    """`grids` [..., n, n] turned or mirrored: 0 leaves them, 1 to 3 turn them, 4 to 7 are the mirror images."""
    if which < 4:
        return np.rot90(grids, which, axes=(-2, -1))
    if which == 4:
        return grids[..., ::-1]
    if which == 5:
        return grids[..., ::-1, :]
    turned = np.swapaxes(grids, -1, -2)
    return turned if which == 6 else turned[..., ::-1, ::-1]


def forms(grids: np.ndarray, side: int) -> np.ndarray:
    """[M] uint64 for mazes [M, side * side]: equal for symmetric copies."""
    squares = grids.reshape(-1, side, side)
    copies = [np.ascontiguousarray(symmetric(squares, which)) for which in range(8)]
    smallest = (min(copy[i].tobytes() for copy in copies) for i in range(len(squares)))
    digests = [int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") for content in smallest]
    return np.array(digests, dtype=np.uint64)
