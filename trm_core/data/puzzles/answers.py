"""An answer's tokens in readable form, and checks of an answer against the rules or the known solution.

S: tokens per puzzle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.arc_tokens import crops
from trm_core.data.puzzles.build.maze.check import solved
from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES
from trm_core.data.puzzles.meaning import Meaning

_EMPTY = 1  # token of an empty cell of a Sudoku; a digit d is d + 1


def readable(tokens: np.ndarray | Sequence[int], meaning: Meaning) -> Any:
    """Tokens [S] in a form for JSON. Sudokus, mazes and others with a character for each token: a string of S
    characters (? where a token has no symbol). ARC: the grid at the top-left corner, or None if there is none. Else the
    tokens.
    """
    if meaning.kind == "arc":
        grid = crops(np.asarray(tokens)[None])[0]
        return None if grid is None else grid.tolist()
    if not meaning.by_symbols:
        return np.asarray(tokens).tolist()
    return "".join(_character(meaning, int(token)) for token in tokens)


def drawn(tokens: np.ndarray | Sequence[int], meaning: Meaning) -> str:
    """The same as text for a terminal, grids over several lines."""
    found = readable(tokens, meaning)
    if found is None:
        return "(no grid)"
    if meaning.kind == "arc":
        return "\n".join(" ".join(map(str, row)) for row in found)
    if not meaning.by_symbols:
        return " ".join(map(str, found))
    rows = [found[begin : begin + meaning.width] for begin in range(0, meaning.cells, meaning.width)]
    geometry = GEOMETRIES.get(meaning.width) if meaning.kind == "sudoku" else None
    if geometry is None:
        return "\n".join(rows)
    lines: list[str] = []
    across = geometry.box_columns
    for number, row in enumerate(rows):
        if number and number % geometry.box_rows == 0:
            lines.append("-+-".join(["-" * (2 * across - 1)] * (meaning.width // across)))
        boxes = (" ".join(row[begin : begin + across]) for begin in range(0, meaning.width, across))
        lines.append(" | ".join(boxes))
    return "\n".join(lines)


def valid(question: np.ndarray, answer: np.ndarray, meaning: Meaning) -> bool | None:
    """Whether an answer [S] keeps the givens of the question [S] and breaks no rule: in Sudokus every digit once in
    each row, column and box; in mazes a shortest path and nothing else. None where there are no rules to check.
    """
    question, answer = np.asarray(question), np.asarray(answer)
    if meaning.kind == "maze" and meaning.height == meaning.width:
        return not isinstance(solved(question, answer, meaning.width), str) and bool(answer.any())
    geometry = GEOMETRIES.get(meaning.width) if meaning.kind == "sudoku" else None
    if geometry is None or geometry.cells != meaning.cells:
        return None
    given = question > _EMPTY
    if (answer[given] != question[given]).any():
        return False
    each = np.arange(_EMPTY + 1, _EMPTY + 1 + geometry.n)
    return bool((np.sort(answer[geometry.units], axis=1) == each).all())


def right(labels: np.ndarray, answer: np.ndarray, meaning: Meaning) -> bool:
    """Whether an answer [S] equals the known one [S], ignored positions left out. ARC answers are compared as grids, or
    by position where the known grid does not lie in the corner and so cannot be read.
    """
    labels, answer = np.asarray(labels), np.asarray(answer)
    if meaning.kind == "arc":
        grid = readable(np.where(labels == IGNORE_LABEL, 0, labels), meaning)
        if grid is not None:
            return grid == readable(answer, meaning)
    known = labels != IGNORE_LABEL
    return bool((labels[known] == answer[known]).all())


def _character(meaning: Meaning, token: int) -> str:
    symbol = meaning.symbols[token] if 0 < token < len(meaning.symbols) else "?"
    return symbol if len(symbol) == 1 else "?"
