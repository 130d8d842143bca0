"""One answer for each ARC test input, by a vote over the predictions for all its augmented copies.

Every prediction is cropped to its grid, turned back into the task's own colours and orientation, and counted. Grids are
ranked by their number of votes, then by the mean halt probability of these votes. No model is needed here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trm_core.data.build.records import digest_array
from trm_core.data.puzzles.arc_copies import inverse_of
from trm_core.data.puzzles.arc_held_out import HeldOutTask
from trm_core.data.puzzles.arc_tokens import crops
from trm_core.data.puzzles.layout import BLANK

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
_NO_QUESTION = -1
_ONE = 1 << 40  # probabilities are summed as integers in this unit, so that the order of addition does not matter

Attempts = dict[str, list[list[int]]]
Submission = dict[str, list[Attempts]]


@dataclass(frozen=True)
class Candidate:
    """A grid uint8 [h, w] that was predicted for a test input, its votes and their mean halt probability."""

    grid: np.ndarray
    votes: int
    halt_probability: float


@dataclass(frozen=True)
class VotingResult:
    """`pass_at[k]`: mean over tasks of the share of a task's test inputs whose answer is among the first k grids; None
    if no solution is known. `tasks`: how many were scored. `submission`: Kaggle's format, with every task and test
    input. `unanswered`: test inputs without any vote. `illegal`: predictions that held no grid. `strangers`: votes on
    inputs that belong to none of the tasks.
    """

    pass_at: dict[int, float] | None
    tasks: int
    submission: Submission
    votes: int
    unanswered: int
    illegal: int
    strangers: int

    def summary(self, policy: str) -> dict[str, Any]:
        """For JSON: everything but the submission, and the policy by which the predictions were made."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "submission"}
        return {"policy": policy, **told}


@dataclass
class _Tally:
    """Votes for one grid: how many, and the sum of their halt probabilities in units of 1 / _ONE."""

    votes: int = 0
    halt: int = 0

    @property
    def mean(self) -> float:
        return self.halt / self.votes

    @property
    def rank(self) -> tuple[int, float]:
        return -self.votes, -self.mean


@dataclass
class Votes:
    """Counts votes.

    `_tallies`: by task and digest of its test input, then by digest of the predicted grid. `_grids`: the packed grid of
    each digest; a few dozen bytes each, which is most of the memory used.
    """

    illegal: int = 0
    _tallies: dict[tuple[str, int], dict[int, _Tally]] = field(default_factory=dict)
    _grids: dict[int, bytes] = field(default_factory=dict)

    def add(self, names: Sequence[str], inputs: np.ndarray, predictions: np.ndarray, halt: np.ndarray) -> None:
        """Count a batch: identifier names [B], tokens [B, 900] of input and prediction, halt probability [B].

        Rows with the blank identifier are padding. Raises `DataError` for a name that cannot be undone.
        """
        rows = zip(names, crops(inputs), crops(predictions), halt.tolist(), strict=True)
        for name, question, answer, probability in rows:
            if name == BLANK:
                continue
            if answer is None:
                self.illegal += 1
                continue
            task, undo = inverse_of(name)
            asked = _NO_QUESTION if question is None else digest_array(undo(question))
            grid = undo(answer)
            digest = digest_array(grid)
            if digest not in self._grids:
                self._grids[digest] = _packed(grid)
            tally = self._tallies.setdefault((task, asked), {}).setdefault(digest, _Tally())
            tally.votes += 1
            tally.halt += round(probability * _ONE) if math.isfinite(probability) else 0

    def ranking(self, task: str, question: np.ndarray) -> list[int]:
        """Digests of the grids that were predicted for a test input [h, w], the best first."""
        tallies = self._tallies.get((task, digest_array(question)), {})
        # The digest breaks ties, so that equally ranked grids do not depend on which came first.
        return sorted(tallies, key=lambda digest: (*tallies[digest].rank, digest))

    def best(self, task: str, question: np.ndarray) -> list[Candidate]:
        """The first grids of that ranking, as many as there are attempts."""
        tallies = self._tallies.get((task, digest_array(question)), {})
        return [
            Candidate(_unpacked(self._grids[digest]), tallies[digest].votes, tallies[digest].mean / _ONE)
            for digest in self.ranking(task, question)[:ATTEMPTS]
        ]

    def result(self, tasks: Sequence[HeldOutTask], pass_at: Sequence[int] = PASS_AT) -> VotingResult:
        """Rank, score and assemble the submission. A test input without votes is wrong; one without solution is not
        scored.
        """
        submission: Submission = {}
        shares: list[np.ndarray] = []  # [len(pass_at)] of each task with a solution
        unanswered = 0
        known: set[tuple[str, int]] = set()
        for task in tasks:
            submission[task.name] = []
            right: list[list[bool]] = []
            for pair in task.test:
                known.add((task.name, digest_array(pair.input)))
                ranking = self.ranking(task.name, pair.input)
                unanswered += not ranking
                submission[task.name].append(attempts_of(self.best(task.name, pair.input)))
                if pair.output is not None:
                    right.append([digest_array(pair.output) in ranking[:k] for k in pass_at])
            if right:
                shares.append(np.mean(right, axis=0))
        means = np.mean(shares, axis=0).tolist() if shares else None
        counted = {key: sum(tally.votes for tally in tallies.values()) for key, tallies in self._tallies.items()}
        return VotingResult(
            pass_at=None if means is None else dict(zip(pass_at, means, strict=True)),
            tasks=len(shares),
            submission=submission,
            votes=sum(counted.values()),
            unanswered=unanswered,
            illegal=self.illegal,
            strangers=sum(votes for key, votes in counted.items() if key not in known),
        )


def attempts_of(candidates: Sequence[Candidate]) -> Attempts:
    """The answer to a test input as a submission holds it: the best grid again where there are too few, [[0]] where
    there are none.
    """
    grids = [one.grid.tolist() for one in candidates] or [[[0]]]
    grids += [grids[0]] * (ATTEMPTS - len(grids))
    return {f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)}


def _packed(grid: np.ndarray) -> bytes:
    return bytes(grid.shape) + zlib.compress(grid.tobytes(), level=1)


def _unpacked(packed: bytes) -> np.ndarray:
    height, width = packed[:2]
    return np.frombuffer(zlib.decompress(packed[2:]), dtype=np.uint8).reshape(height, width)
