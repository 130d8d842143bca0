"""Random mazes with a single shortest path from S to G.

Corridors run along every second row and column. They grow as a tree, sometimes from the newest corner (long winding
paths) and sometimes from any corner (many short dead ends); then some walls are opened, so that there are detours to
tell from the shortest path.
"""

from __future__ import annotations

from random import Random

import numpy as np

from trm_core.data.puzzles.build.maze.grid import FREE, GOAL, START, WALL, WAY, distances, way_back
from trm_core.data.puzzles.build.seeds import GENERATE, generator
from trm_core.errors import ConfigError

_MAZES, _STARTS = 300, 4  # drawn until one is hard enough
_DETOURS = 0.06  # walls opened at most, as a share of those between corridors


def generate(start: int, stop: int, seed: int, side: int, min_path: int) -> tuple[np.ndarray, np.ndarray]:
    """Mazes `start` .. `stop` of a seed: (questions, answers), both [stop - start, side * side] tokens."""
    made = [one_maze(side, min_path, generator(seed, GENERATE, index)) for index in range(start, stop)]
    return np.stack([question for question, _ in made]), np.stack([answer for _, answer in made])


def one_maze(side: int, min_path: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A question and its answer; from S to G there are at least `min_path` cells, both counted."""
    # Python's own generator is faster for single numbers; only `random()`, whose numbers are the same in all versions.
    random = Random(int(rng.integers(2**63)))
    for _ in range(_MAZES):
        walkable = _corridors(side, random)
        cells = [cell for cell, free in enumerate(walkable) if free]
        for _ in range(_STARTS):
            start = cells[int(random.random() * len(cells))]
            steps, ways = distances(walkable, side, start)
            goals = [cell for cell in cells if steps[cell] + 1 >= min_path and ways[cell] == 1 and cell != start]
            if goals:
                goal = goals[int(random.random() * len(goals))]
                question = np.where(np.array(walkable, dtype=bool), FREE, WALL).astype(np.uint8)
                question[start], question[goal] = START, GOAL
                answer = question.copy()
                answer[way_back(steps, side, goal)] = WAY
                return question, answer
    raise ConfigError(
        f"data.puzzles.min_path: {_MAZES} mazes of {side} x {side} had no shortest path of {min_path} cells",
        hint="expected a smaller number, or a larger data.puzzles.size",
    )


def _corridors(side: int, random: Random) -> list[bool]:
    """[side * side]: where one can walk."""
    draw = random.random
    # If the side is even, one row and one column are all wall, on a randomly drawn side.
    tops = [int(draw() * 2) if side % 2 == 0 else 0 for _ in range(2)]
    rows, columns = ((side - top + 1) // 2 for top in tops)
    winding, detours = 0.6 + 0.4 * draw(), _DETOURS * draw()
    walkable = [False] * (side * side)

    def at(row: int, column: int) -> int:
        return (tops[0] + 2 * row) * side + tops[1] + 2 * column

    def around(row: int, column: int) -> list[tuple[int, int]]:
        near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        return [(r, c) for r, c in near if 0 <= r < rows and 0 <= c < columns]

    first = int(draw() * rows), int(draw() * columns)
    walkable[at(*first)] = True
    active = [first]
    while active:
        index = len(active) - 1 if draw() < winding else int(draw() * len(active))
        here = active[index]
        fresh = [node for node in around(*here) if not walkable[at(*node)]]
        if not fresh:
            active[index] = active[-1]
            active.pop()
            continue
        node = fresh[int(draw() * len(fresh))]
        walkable[at(*node)] = walkable[(at(*here) + at(*node)) // 2] = True
        active.append(node)
    for row in range(rows):
        for column in range(columns):
            for near in ((row + 1, column), (row, column + 1)):
                if near[0] < rows and near[1] < columns and draw() < detours:
                    walkable[(at(row, column) + at(*near)) // 2] = True
    return walkable
