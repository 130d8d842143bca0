"""What a model thought about one sample, step by step: the input of all drawings.

S cells of a puzzle, k capsules, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trm_core.data.puzzles.layout import Manifest

_LONGEST_ROW = 24  # capsules; beyond 288 capsules rows get longer, keeping half as many rows as columns


@dataclass(frozen=True)
class PuzzleStep:
    """predicted: int [S] tokens; confidence: float [S], the probability of each; halt: probability of being right."""

    predicted: np.ndarray
    confidence: np.ndarray
    halt: float


@dataclass(frozen=True)
class PuzzleThinking:
    """inputs: int [S], the tokens of the question. At least one step."""

    manifest: Manifest
    inputs: np.ndarray
    steps: Sequence[PuzzleStep]

    def __post_init__(self) -> None:
        cells = self.manifest.height * self.manifest.width
        assert self.steps
        for array in (self.inputs, *(array for step in self.steps for array in (step.predicted, step.confidence))):
            assert array.shape == (cells,), (array.shape, cells)


@dataclass(frozen=True)
class CapsuleStep:
    """belief: float [V], the probability of each class; opened: the capsules opened just before this step; halt: the
    probability of being right, if the model has such an output."""

    belief: np.ndarray
    opened: Sequence[int] = ()
    halt: float | None = None


@dataclass(frozen=True)
class CapsuleThinking:
    """class_names: [V], or None where classes are numbers. At least one step."""

    num_capsules: int
    steps: Sequence[CapsuleStep]
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        assert self.steps
        for step in self.steps:
            assert step.belief.shape == self.steps[0].belief.shape, (step.belief.shape, self.steps[0].belief.shape)
            assert all(0 <= capsule < self.num_capsules for capsule in step.opened), step.opened

    @property
    def lattice(self) -> tuple[int, int]:
        """Rows and columns: a square if k is a square number, otherwise one row, wrapped if it is long."""
        side = round(self.num_capsules**0.5)
        if side * side == self.num_capsules:
            return side, side
        columns = min(self.num_capsules, max(_LONGEST_ROW, math.ceil((2 * self.num_capsules) ** 0.5)))
        return math.ceil(self.num_capsules / columns), columns

    def name(self, number: int) -> str:
        """The name of a class for display, without control characters: a stranger's names must not steer a terminal."""
        if self.class_names is None or number >= len(self.class_names):
            return str(number)
        return "".join(c if c.isprintable() else "?" for c in self.class_names[number])

    def opened_at(self, last: int) -> dict[int, int]:
        """capsule -> number of the step (from 0) that first opened it, up to step `last`."""
        found: dict[int, int] = {}
        for number, step in enumerate(self.steps[: last + 1]):
            for capsule in step.opened:
                found.setdefault(capsule, number)
        return found

    def winners(self) -> list[int]:
        """The classes that lead after any step, latest first, so beginning with the answer."""
        return list(dict.fromkeys(int(step.belief.argmax()) for step in reversed(self.steps)))

    def leaders(self, most: int) -> list[int]:
        """At most `most` classes worth showing, ordered by final belief. The winners are chosen first, then those with
        the greatest belief at any step.
        """
        beliefs = np.stack([step.belief for step in self.steps])
        strong = np.argsort(-beliefs.max(axis=0), kind="stable").tolist()
        shown = list(dict.fromkeys([*self.winners(), *strong]))[:most]
        return sorted(shown, key=lambda number: -float(beliefs[-1, number]))
