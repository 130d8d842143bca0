"""Right answers and reasoning steps of puzzles by how much there was to find out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.errors import UsageError
from trm_core.evaluation.intervals import wilson_interval
from trm_core.evaluation.report import EvaluationData, Score
from trm_core.evaluation.rollout import Outcome

MOST_GROUPS = 8


@dataclass(frozen=True)
class Group:
    """Puzzles with `fewest` to `most` cells to fill: cells whose answer differs from what the question shows there."""

    fewest: int
    most: int
    puzzles: int
    exact: float  # share of puzzles that are right as a whole
    low: float  # 95 % interval of `exact`
    high: float
    cells: float  # mean share of right cells, those that the question shows included
    steps: float  # mean number of reasoning steps


def cells_to_fill(data: EvaluationData) -> NDArray[np.int64]:
    """[N] of the evaluated puzzles; -1 for one without labels. Raises UsageError if these are not puzzles, or if none
    has labels.
    """
    if not isinstance(data.file, PuzzleData):
        raise UsageError(
            f"{data.file.path} holds capsules, whose difficulty nothing tells",
            hint="leave --by-difficulty out; --by-class shows where the mistakes are",
        )
    found = []
    for batch in data.batches():
        assert batch.labels is not None
        known = batch.labels != IGNORE_LABEL
        open_ = (known & (batch.labels != batch.sketches)).sum(1)
        found.append(open_.where(known.any(1), -1).numpy())
    cells = np.concatenate(found)
    if not (cells >= 0).any():
        raise UsageError(
            f"{data.file.path}: {data.split} holds no answers to compare with", hint="leave --by-difficulty out"
        )
    return cells


def by_difficulty(score: Score, outcome: Outcome, cells: NDArray[np.int64]) -> dict[str, Any]:
    """The record for one line of the table; `cells` [N] of `cells_to_fill`."""
    exact, right, steps = (part.cpu().numpy() for part in (outcome.exact, outcome.accuracy, outcome.steps))
    groups = []
    for fewest, most in ranges(cells[cells >= 0]):
        rows = (cells >= fewest) & (cells <= most)
        count, solved = int(rows.sum()), int(exact[rows].sum())
        low, high = wilson_interval(solved, count)
        shares = float(right[rows].mean()), float(steps[rows].mean())
        groups.append(Group(fewest, most, count, solved / count, low, high, *shares))
    return {"policy": score.policy, "setting": score.setting, "groups": [asdict(one) for one in groups]}


def ranges(cells: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last number of cells of each of at most MOST_GROUPS groups, of about equal size where there are more
    numbers than that. Puzzles with equally many cells are in one group.
    """
    if not len(cells):
        return []
    values, counts = np.unique(cells, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # of each value among the sorted puzzles
    group = (middle * MOST_GROUPS / len(cells)).astype(int) if len(values) > MOST_GROUPS else np.arange(len(values))
    parts = [values[group == one].tolist() for one in np.unique(group)]
    return [(part[0], part[-1]) for part in parts]
