"""Thinking, made up."""

from __future__ import annotations

import numpy as np

from trm_core.data.puzzles.arc_tokens import SYMBOLS, lay
from trm_core.data.puzzles.layout import Manifest
from trm_core.render.thinking import CapsuleStep, CapsuleThinking, PuzzleStep, PuzzleThinking


def steps(*predictions: np.ndarray, halt: float = 0.5) -> list[PuzzleStep]:
    return [PuzzleStep(tokens, np.linspace(0, 1, tokens.size), halt) for tokens in predictions]


def sudoku(side: int = 4) -> PuzzleThinking:
    """The first digit is given; the second step changes the last cell and the first, which it must not."""
    manifest = Manifest(kind="sudoku", height=side, width=side, symbols=["<pad>", ".", *map(str, range(1, side + 1))])
    question = np.ones(side * side, dtype=int)
    question[0] = 3
    first = np.full(side * side, 2)
    first[0] = 3
    second = first.copy()
    second[[0, -1]] = 4
    return PuzzleThinking(manifest, question, steps(first, second))


def maze() -> PuzzleThinking:
    manifest = Manifest(kind="maze", height=2, width=3, symbols=["<pad>", "#", " ", "S", "G", "o"])
    question = np.array([3, 2, 4, 1, 1, 1])
    answer = question.copy()
    answer[1] = 5
    return PuzzleThinking(manifest, question, steps(question, answer))


def arc(side: int = 3) -> PuzzleThinking:
    random = np.random.default_rng(side)
    question, first, second = (lay(random.integers(10, size=(side, side))).reshape(-1) for _ in range(3))
    return PuzzleThinking(Manifest(kind="arc", height=30, width=30, symbols=SYMBOLS), question, steps(first, second))


def capsules(count: int = 16, names: list[str] | None = None) -> CapsuleThinking:
    return CapsuleThinking(
        count,
        [
            CapsuleStep(np.array([0.4, 0.4, 0.2]), (), 0.1),
            CapsuleStep(np.array([0.1, 0.8, 0.1]), (0, count - 1), 0.6),
            CapsuleStep(np.array([0.0, 1.0, 0.0]), (1,), 0.9),
        ],
        names,
    )


def changing_its_mind(steps: int) -> CapsuleThinking:
    """After each step another class leads, the last (the answer) by little. There are twice as many classes."""
    beliefs = np.full((steps, 2 * steps), 0.01)
    beliefs[np.arange(steps), np.arange(steps)] = 0.9
    beliefs[-1, steps - 1] = 0.1
    return CapsuleThinking(4, [CapsuleStep(belief) for belief in beliefs])
