"""What a model thought about one sample, step by step: what the pictures are made from.

S cells of a puzzle, k capsules, V classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trm_core.data.puzzles.layout import Manifest


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
        """Rows and columns: a square if k is one, else one row."""
        side = round(self.num_capsules**0.5)
        return (side, side) if side * side == self.num_capsules else (1, self.num_capsules)

    def name(self, number: int) -> str:
        """The class as a human reads it; control characters in a stranger's names must not steer a terminal."""
        if self.class_names is None or number >= len(self.class_names):
            return str(number)
        return "".join(c if c.isprintable() else "?" for c in self.class_names[number])

    def opened_at(self, last: int) -> dict[int, int]:
        """capsule -> number of the step (from 0) that opened it, up to step `last`; the first time counts."""
        found: dict[int, int] = {}
        for number, step in enumerate(self.steps[: last + 1]):
            for capsule in step.opened:
                found.setdefault(capsule, number)
        return found

    def leaders(self, most: int) -> list[int]:
        """Classes worth showing: those with the greatest belief at any step, ordered by the last belief."""
        beliefs = np.stack([step.belief for step in self.steps])
        shown = np.argsort(-beliefs.max(axis=0), kind="stable")[:most]
        return sorted(shown.tolist(), key=lambda number: -float(beliefs[-1, number]))
