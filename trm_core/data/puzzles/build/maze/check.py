"""Whether a maze and its answer fit together."""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.build.maze.grid import FREE, GOAL, START, WALL, WAY, distances, way_back


def solved(question: np.ndarray, answer: np.ndarray, side: int) -> np.ndarray | str:
    """The answer [cells] to `question` [cells], checked or (where `answer` is all zeros) found; or what is wrong."""
    for token, name in ((START, "S"), (GOAL, "G")):
        count = int((question == token).sum())
        if count != 1:
            return f"the maze has {count} {name}, expected one"
    if (question == WAY).any():
        return "the puzzle already shows the path (o)"
    start, goal = int((question == START).argmax()), int((question == GOAL).argmax())
    steps, ways = distances((question != WALL).tolist(), side, start)
    if steps[goal] < 0:
        return "no path leads from S to G"
    if not answer.any():
        if ways[goal] > 1:
            return "the maze has several shortest paths, and no solution says which is meant"
        answer = question.copy()
        answer[way_back(steps, side, goal)] = WAY
        return answer
    return _objection(question, answer, side, start, goal, steps[goal]) or answer


def _objection(question: np.ndarray, answer: np.ndarray, side: int, start: int, goal: int, shortest: int) -> str | None:
    marked = answer == WAY
    if ((answer != question) & ~(marked & (question == FREE))).any():
        return "the solution changes the maze: walls, S and G must stay, and o may stand on free cells only"
    walkable = marked.copy()
    walkable[[start, goal]] = True
    length = distances(walkable.tolist(), side, start)[0][goal]
    if length < 0:
        return "the cells marked o do not lead from S to G"
    if length > shortest:
        return f"the path in the solution takes {length} steps, the shortest one {shortest}"
    if int(marked.sum()) != length - 1:
        return "the solution marks cells that are not on the path"
    return None
