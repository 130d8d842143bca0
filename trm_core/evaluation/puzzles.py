"""What evaluation adds for puzzles: ARC tasks are answered by a vote over the copies of each test input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trm_core.data.puzzles.arc_copies import inverse_of
from trm_core.data.puzzles.arc_held_out import HeldOutTask, read_held_out
from trm_core.data.puzzles.layout import BLANK, TEST_PUZZLES
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.evaluation.arc_voting import Votes, VotingResult
from trm_core.evaluation.report import EvaluationData
from trm_core.evaluation.rollout import Outcome


def can_vote(data: EvaluationData) -> bool:
    """Whether these are test examples of ARC tasks, with the names of their copies and the tasks themselves."""
    file = data.file
    there = isinstance(file, PuzzleData) and file.names is not None and (file.path / TEST_PUZZLES).is_file()
    return there and data.split == "test"


def tasks_of(data: EvaluationData) -> list[HeldOutTask]:
    """The tasks to vote on. Raises DataError, before anything is computed, for a file that holds no tasks and for
    examples that are not copies of tasks.
    """
    file = data.file
    assert isinstance(file, PuzzleData)
    assert file.names is not None
    for part in file.sets[data.split]:
        for number in np.unique(part.puzzle_identifiers).tolist():
            if file.names[number] != BLANK:
                inverse_of(file.names[number])
    return read_held_out(file.path)


def vote(data: EvaluationData, outcome: Outcome, tasks: Sequence[HeldOutTask]) -> VotingResult:
    """A ranking of grids for each test input, from the answers [N, 900] (any integer type) to all of its copies."""
    file = data.file
    assert isinstance(file, PuzzleData)
    assert file.names is not None
    votes, first = Votes(), 0
    for batch in data.batches():
        rows = slice(first, first + len(batch))
        assert batch.puzzles is not None
        votes.add(
            [file.name_of(number) for number in batch.puzzles.tolist()],
            batch.sketches.numpy(),
            outcome.prediction[rows].cpu().numpy(),
            torch.sigmoid(outcome.halt_logit[rows].double()).cpu().numpy(),
        )
        first += len(batch)
    return votes.result(tasks)
