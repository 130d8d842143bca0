"""What is evaluated of puzzles beside policies: ARC tasks are answered by a vote over the copies of each test input."""

from __future__ import annotations

import torch

from trm_core.data.puzzles.arc_held_out import read_held_out
from trm_core.data.puzzles.layout import TEST_PUZZLES
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.errors import UsageError
from trm_core.evaluation.arc_voting import Votes, VotingResult
from trm_core.evaluation.report import EvaluationData
from trm_core.evaluation.rollout import Outcome


def can_vote(data: EvaluationData) -> bool:
    """Whether these are test examples of ARC tasks, with the names of their copies and the tasks themselves."""
    file = data.file
    there = isinstance(file, PuzzleData) and file.names is not None and (file.path / TEST_PUZZLES).is_file()
    return there and data.split == "test"


def vote(data: EvaluationData, outcome: Outcome) -> VotingResult:
    """One ranking of grids for each test input out of the answers [N, 900] to all of its copies. Raises DataError for
    names that are no copies', UsageError where `can_vote` does not hold.
    """
    file = data.file
    if not isinstance(file, PuzzleData) or file.names is None or not can_vote(data):
        raise UsageError(
            f"{file.path} ({data.split}) holds no test tasks to vote on",
            hint="evaluate the test split of a folder that trm build-puzzles arc wrote",
        )
    votes, first = Votes(), 0
    for batch in data.batches():
        rows = slice(first, first + len(batch))
        assert batch.puzzles is not None
        votes.add(
            [file.names[number] for number in batch.puzzles.tolist()],
            batch.sketches.numpy(),
            outcome.prediction[rows].cpu().numpy(),
            torch.sigmoid(outcome.halt_logit[rows].double()).cpu().numpy(),
        )
        first += len(batch)
    return votes.result(read_held_out(file.path))
