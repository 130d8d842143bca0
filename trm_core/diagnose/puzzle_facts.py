"""Facts about a puzzle folder, computed from a sample: those of `DataFacts`, asked of tokens.

Cells cannot be opened and are not features for a linear probe, so facts that need either are unknown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trm_core.data.puzzles.build.sudoku.geometry import GEOMETRIES, Geometry
from trm_core.data.puzzles.build.sudoku.solver import solve
from trm_core.data.puzzles.meaning import meaning_of
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.data.puzzles.survey import MOST_TOKENS_IN_PAIRS, Survey, survey
from trm_core.diagnose.data_facts import DataFacts, Twins
from trm_core.diagnose.puzzle_examples import Examples, Meant, examples_of, meant, spread
from trm_core.diagnose.puzzle_forms import MOST_NAMES, digits_of, forms_of, shared_forms

_FEWEST = 50  # examples of a split
_SOLVED, _TOGETHER, _SECONDS = 200, 20, 1.0  # Sudokus to solve, at once, and the time limit
_FEWEST_CLUES = {4: 4, 6: 8, 9: 17}  # fewer always leave several solutions
_CELLS = 8_000_000  # tokens read from one split


class PuzzleFacts(DataFacts):
    """Facts about one folder, each computed when it is first used."""

    def __init__(self, path: Path, held_out: str | None = None, surveys: Mapping[str, Survey] | None = None) -> None:
        """surveys: of whole splits, if they were made. Raises DataError if the folder cannot be opened."""
        self.puzzles: PuzzleData = open_puzzles(path)
        self.take(self.puzzles, held_out)
        self._surveys: dict[str, Survey] = dict(surveys or {})

    def survey(self, split: str) -> Survey:
        """The survey of the whole split if it was given, otherwise of examples spread evenly over it. Raises DataError
        for tokens outside the vocabulary.
        """
        if split not in self._surveys:
            self.puzzles.require_labels(split)
            rows = self.puzzles.rows[split]
            count = min(rows, max(1, _CELLS // self.puzzles.num_capsules))
            index = np.unique(np.linspace(0, max(rows - 1, 0), count).astype(np.int64))
            self._surveys[split] = survey(self.puzzles, split, index)
        return self._surveys[split]

    @property
    def training(self) -> Survey | None:
        """The survey of the training split, if there is one."""
        return self.survey("train") if self.puzzles.rows.get("train") else None

    @property
    def judged(self) -> Survey | None:
        """The survey of the held-out split, if there is one."""
        return None if self.held_out in (None, "train") else self.survey(str(self.held_out))

    @property
    def visits(self) -> float:
        """Rows drawn per epoch, which visits every group of all folders once."""
        return self.puzzles.rows_per_epoch("train")

    @cached_property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """The tokens of all answered cells in the examples that are read, sorted."""
        found = {}
        for split in ("train", self.held_out):
            if split is not None and self.puzzles.rows.get(split):
                counts = self.survey(split).labels
                found[split] = np.repeat(np.arange(len(counts)), counts)
        return found

    @cached_property
    def twins(self) -> Twins:
        """Compares whole examples only; for copies under symmetries see `symmetric`."""
        if self.training is None or self.judged is None or not self.judged.examples:
            return Twins(0.0)
        return Twins(float(np.isin(self.judged.answered, self.training.answered).mean()))

    @cached_property
    def repeated(self) -> float:
        """Share of the training examples whose question and answer repeat those of an earlier one."""
        return 0.0 if self.training is None else self.training.repeated / max(self.training.examples, 1)

    @cached_property
    def examples(self) -> tuple[Examples, Examples] | None:
        """Some training examples and some held-out ones, if there are both."""
        if self.training is None or self.judged is None:
            return None
        return examples_of(self.puzzles, "train"), examples_of(self.puzzles, str(self.held_out))

    @property
    def compared(self) -> tuple[Examples, Examples] | None:
        """The same, if there are enough of both to compare their tokens."""
        if self.examples is None or min(map(len, self.examples)) < _FEWEST:
            return None
        return self.examples if (self.puzzles.num_classes or 0) <= MOST_TOKENS_IN_PAIRS else None

    @cached_property
    def meant(self) -> Meant | None:
        """What question tokens mean in both splits: see `meant`. None if there is too little to compare."""
        return None if self.compared is None else meant(*self.compared, self.puzzles.num_classes or 0)

    @cached_property
    def symmetric(self) -> tuple[float, float] | None:
        """Shares of the held-out and of the training puzzles that are copies of (another) training puzzle under the
        symmetries of their kind; None if these are unknown.
        """
        classes = self.puzzles.num_classes or 0
        if self.examples is None or classes > MOST_NAMES:
            return None
        meaning = meaning_of(self.puzzles)
        train, other = (forms_of(some, meaning.height, meaning.width, classes) for some in self.examples)
        if train is None or other is None:
            return None
        return shared_forms(train, other, self.examples[0].groups, self.examples[0].part)

    @cached_property
    def ambiguous(self) -> float | None:
        """Share of some training Sudokus with more than one solution; None for other puzzles, and if an answer does not
        solve its question.
        """
        if self.examples is None or (self.puzzles.num_classes or 0) > MOST_NAMES:
            return None
        meaning, train = meaning_of(self.puzzles), self.examples[0]
        asked = digits_of(train, meaning.height, meaning.width)
        said = digits_of(replace(train, inputs=train.labels), meaning.height, meaning.width)
        if asked is None or said is None or ((asked > 0) & (asked != said)).any():
            return None
        return several_solutions(spread(asked, min(len(asked), _SOLVED)), GEOMETRIES[meaning.height])

    @cached_property
    def unknown_identifiers(self) -> float:
        """Share of the held-out examples whose identifier no training example has."""
        if self.training is None or self.judged is None:
            return 0.0
        train, other = (
            np.concatenate([part.identifiers for part in self.puzzles.sets[split]])
            for split in ("train", str(self.held_out))
        )
        return float((~np.isin(other, train)).mean()) if len(other) else 0.0

    def _read_sample(self, split: str) -> dict[str, np.ndarray]:
        return {}


def several_solutions(asked: np.ndarray, geometry: Geometry) -> float:
    """Share of the Sudokus [n, cells] (0: empty; all are solvable) with more than one solution, among as many as can be
    solved in a second. Where two digits are not given they can be swapped, so such Sudokus, and those with too few
    clues, need no solving; the others are quick.
    """
    given = np.stack([(asked == digit).any(1) for digit in range(1, geometry.n + 1)], 1)
    few = (given.sum(1) < geometry.n - 1) | ((asked > 0).sum(1) < _FEWEST_CLUES[geometry.n])
    rest, until = asked[~few], time.monotonic() + _SECONDS
    several = looked_at = 0
    while looked_at < len(rest) and time.monotonic() < until:
        counts = solve(rest[looked_at : looked_at + _TOGETHER], geometry).counts
        several, looked_at = several + int((counts > 1).sum()), looked_at + len(counts)
    share = several / looked_at if looked_at else 0.0
    return float(few.mean() + (1 - few.mean()) * share)


def facts_of(path: Path, held_out: str | None = None) -> DataFacts:
    """Facts about a puzzle folder or a capsule file. Raises DataError if it cannot be opened."""
    return PuzzleFacts(path, held_out) if path.is_dir() else DataFacts(path, held_out)
